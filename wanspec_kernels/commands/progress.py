"""Progress: a bar with the time left, or a line for each step where nobody watches a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar() -> Iterator[Callable[[float, str], None]]:
    """Gives what takes the share of the work that is done, and what is being done."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _lines(console)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda share, what: bar.update(task, completed=share, description=what)


def _lines(console: Console) -> Callable[[float, str], None]:
    said = ""

    def say(share: float, what: str) -> None:
        nonlocal said
        if what != said:
            said = what
            console.print(f"{share:.0%}: {what}", markup=False)

    return say
