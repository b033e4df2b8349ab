"""Runs: scenarios measured, perhaps in several processes, with an account of how far it is."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from wanspec_kernels.simulation.measures import Map, Measures, measure
from wanspec_kernels.simulation.rounds import Rounds
from wanspec_kernels.simulation.scenario import Scenario

Progress = Callable[[float, str], None]


class Runs:
    """`progress` gets the share of all work that is done, and what is being done."""

    def __init__(self, mapped: Map, progress: Progress) -> None:
        self._mapped, self._progress = mapped, progress
        self._what = ""
        self._share = self._step = 0.0

    def begin(self, what: str, share: float, until: float, count: int) -> None:
        """What comes now takes the work from one share to another, in `count` runs."""
        self._what, self._share = what, share
        self._step = (until - share) / max(1, count)
        self._progress(share, what)

    def mapped(self, call: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for found in self._mapped(call, items):
            self._share += self._step
            self._progress(min(self._share, 1.0), self._what)
            yield found

    def measure(self, runs: Iterable[Scenario | Rounds]) -> Iterator[tuple[Measures, float]]:
        """Of each, its measures and the seconds that it took to simulate."""
        return self.mapped(_timed, runs)


def _timed(run: Scenario | Rounds) -> tuple[Measures, float]:
    began = time.perf_counter()
    return measure(run), time.perf_counter() - began
