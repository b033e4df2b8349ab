"""Panes: the demo's texts side by side on a terminal, each as it is written."""

import time
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from wanspec_kernels.demo.display import Written, style_of, tokens_of
from wanspec_kernels.demo.observer import Observer, Prompt
from wanspec_kernels.engine.statistics import Statistics

REFRESH_S = 0.1  # To draw takes the target's time.
MIN_WIDTH, MIN_HEIGHT = 40, 5  # of a pane
MAX_COLUMNS = 3
LINES_BELOW = 1  # of the panes; with it the last line does not scroll


class Panes(Observer):
    """A grid as large as the terminal; texts for which it has no room are not shown."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._panes: list[Pane] = []
        self._live: Live | None = None
        self._drawn_s = 0.0

    def progress(self, text: str) -> None:
        self._console.print(Text(text, "dim"))

    def begin(self, prompts: Sequence[Prompt]) -> None:
        self._panes = [Pane(prompt) for prompt in prompts]
        self._live = Live(Grid(self._panes), console=self._console, auto_refresh=False)
        self._live.start(refresh=True)

    def token(self, number: int, text: str, drafted_by: str | None) -> None:
        self._panes[number].written.text.append(text, style_of(drafted_by))
        now_s = time.monotonic()
        if self._live is not None and now_s >= self._drawn_s + REFRESH_S:
            self._drawn_s = now_s
            self._live.refresh()

    def text_ended(self, number: int, statistics: Statistics) -> None:
        self._panes[number].closing = tokens_of(statistics)

    def end(self) -> None:
        if self._live is not None:
            self._live.refresh()
            self._live.stop()


class Pane:
    """One text; of a long one its end."""

    def __init__(self, prompt: Prompt) -> None:
        self.written = Written(prompt)
        self.closing = ""  # once the text is complete

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or MIN_HEIGHT
        lines = self.written.text.wrap(console, max(1, options.max_width - 4))
        yield Panel(
            Text("\n").join(lines[-max(1, height - 2) :]),
            title=self.written.prompt.name,
            subtitle=self.closing,
            height=height,
        )


class Grid:
    """As high as the terminal, and as wide."""

    def __init__(self, panes: Sequence[Pane]) -> None:
        self._panes = panes

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = console.height - LINES_BELOW
        columns = max(1, min(MAX_COLUMNS, len(self._panes), options.max_width // MIN_WIDTH))
        shown = self._panes[: columns * max(1, height // MIN_HEIGHT)]
        lines = []
        for first in range(0, len(shown), columns):
            line = Layout()
            line.split_row(*map(Layout, shown[first : first + columns]))
            lines.append(line)
        layout = Layout()
        layout.split_column(*lines)
        yield from console.render(layout, options.update_height(height))
