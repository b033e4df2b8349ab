"""Observer: what a demo says while it runs, and of which texts."""

from collections.abc import Sequence
from dataclasses import dataclass

from wanspec_kernels.engine.statistics import Statistics

HOME_NAME = "home"


@dataclass(frozen=True, slots=True)
class Prompt:
    name: str
    text: str
    seed: int


class Observer:
    """Is told how the demo goes on; every method may be overridden. Texts are numbered from 0."""

    def progress(self, text: str) -> None: ...

    def begin(self, prompts: Sequence[Prompt]) -> None:
        """The texts after these prompts are written from now on, all at once."""

    def token(self, number: int, text: str, drafted_by: str | None) -> None:
        """One token's text, and who drafted it: a drafter's name, `HOME_NAME`, or nobody."""

    def text_ended(self, number: int, statistics: Statistics) -> None:
        """One text is complete."""

    def end(self) -> None:
        """All are complete, or given up."""
