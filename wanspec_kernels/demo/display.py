"""What the demo shows: text as it is committed, each token in the colour of who drafted it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wanspec_kernels.demo.observer import HOME_NAME, Observer, Prompt
from wanspec_kernels.engine.statistics import Statistics

REMOTE_STYLES = ("black on green", "black on cyan", "black on yellow", "black on magenta")
HOME_STYLE = "black on white"
PROMPT_LINES = 6
SHARES = 4  # Progress is told at each quarter of the tokens.


class Quiet(Observer):
    """Progress only, as plain lines; for `--json`.

    `max_tokens` is of each text.
    """

    def __init__(self, console: Console, max_tokens: int) -> None:
        self._console = console
        self._max_tokens = max_tokens
        self._num_tokens = self._most = self._told = 0

    def progress(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def begin(self, prompts: Sequence[Prompt]) -> None:
        self._most = len(prompts) * self._max_tokens
        for number, prompt in enumerate(prompts, 1):
            self.progress(f"prompt {number}: {prompt.name}")

    def token(self, number: int, text: str, drafted_by: str | None) -> None:
        self._num_tokens += 1
        share = SHARES * self._num_tokens // self._most
        if share > self._told:
            self._told = share
            self.progress(f"{self._num_tokens} of at most {self._most} tokens")


@dataclass(slots=True)
class Written:
    """One prompt's end, and the text after it in colours."""

    prompt: Prompt
    text: Text = field(default_factory=Text)

    def __post_init__(self) -> None:
        shown = self.prompt.text.splitlines(keepends=True)[-PROMPT_LINES:]
        self.text.append("".join(shown), "dim")


class Plain(Observer):
    """Each text once it is complete; for a console that is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._texts: list[Written] = []

    def progress(self, text: str) -> None:
        self._console.print(Text(text, "dim"), soft_wrap=True)

    def begin(self, prompts: Sequence[Prompt]) -> None:
        self._texts = [Written(prompt) for prompt in prompts]

    def token(self, number: int, text: str, drafted_by: str | None) -> None:
        self._texts[number].text.append(text, style_of(drafted_by))

    def text_ended(self, number: int, statistics: Statistics) -> None:
        written = self._texts[number]
        self._console.print()
        self._console.print(Text(f"{written.prompt.name}: {tokens_of(statistics)}", "bold"))
        self._console.print(written.text, soft_wrap=True)


def tokens_of(statistics: Statistics) -> str:
    return f"{statistics.tokens} tokens in {statistics.target_passes} target passes"


def style_of(drafter: str | None) -> str:
    if drafter is None:
        return ""
    if drafter == HOME_NAME:
        return HOME_STYLE
    number = int(drafter.rpartition("-")[2])
    return REMOTE_STYLES[(number - 1) % len(REMOTE_STYLES)]


def legend(num_drafters: int) -> Text:
    text = Text("accepted drafts: ")
    for number in range(1, num_drafters + 1):
        name = f"drafter-{number}"
        text.append(f" {name} ", style_of(name)).append(" ")
    return text.append(" at home ", HOME_STYLE).append("   the target's own tokens are plain")


def table(report: dict[str, Any], target_pass_ms: float, rule: str) -> Table:
    """The closing table of a report of `demo.run`."""
    rows = Table(show_header=False, title="wanspec demo", title_justify="left")
    rows.add_column(style="bold")
    rows.add_column()
    round_trips = ", ".join("?" if r is None else f"{r:.0f}" for r in report["round_trip_ms"])
    drafts = ", ".join(f"{n} {kind}" for kind, n in report["drafts"].items() if n)
    same = "yes, every token" if report["identical_to_target_alone"] else "no"
    if rule == "rejection" and not report["identical_to_target_alone"]:
        same = "no: `rejection` keeps the distribution, not the text"
    rows.add_row("tokens", f"{report['tokens']} of {len(report['requests'])} texts at once")
    rows.add_row("tokens of a text in a target pass", f"{report['tokens_per_target_pass']:.2f}")
    rows.add_row("target pass", f"paced to {target_pass_ms:g} ms, as a large model's")
    rows.add_row("time", f"{report['seconds']:.2f} s; alone {report['seconds_target_alone']:.2f} s")
    rows.add_row("speed-up over the target alone", f"{report['speedup_over_target_alone']:.2f}×")
    rows.add_row("identical to the target alone", same)
    rows.add_row("drafters", f"{report['drafters']}, round trips {round_trips} ms")
    rows.add_row("drafts received", drafts or "none")
    rows.add_row(
        "accepted drafts",
        f"{report['remote_tokens_accepted']} remote, {report['home_tokens_accepted']} home",
    )
    rows.add_row("draft passes at home", str(report["local_draft_passes"]))
    rows.add_row("on the wire", f"{report['wire_bytes_per_token']:.0f} bytes a token")
    return rows
