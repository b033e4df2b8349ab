"""Replies: when remotes are heard after a commit, as far as one request has seen it."""

from collections.abc import Container
from dataclasses import dataclass

from wanspec_kernels.drafts.selection import Selection
from wanspec_kernels.drafts.sources import Sources

MAX_COMMITS_TIMED = 64


@dataclass(frozen=True, slots=True)
class Arrival:
    """What is to be expected of one remote drafter."""

    next_ms: float  # when it should be heard next
    every_ms: float  # between two additions to the tree
    open_mass: float  # probability that the path leaves the tree where this drafter grows it
    source: int = -1  # who


class Replies:
    """Times commits and the first drafts that know of them; the paces go to `sources`."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._newest: dict[int, int] = {}  # by source: the base length heard of
        self._heard_ms: dict[int, float] = {}  # by source: when it last drafted for this request
        self._committed_ms: dict[int, float] = {}  # by length
        self._length = 0

    def committed(self, length: int, now: float) -> None:
        self._length = length
        self._committed_ms[length] = now
        if len(self._committed_ms) > MAX_COMMITS_TIMED:
            del self._committed_ms[next(iter(self._committed_ms))]

    def heard(self, source: int, base_length: int, now: float) -> None:
        """A draft of a remote came."""
        pace = self._sources.pace(source)
        pace.heard(now, self._heard_ms.get(source), self._sources.round_ms)
        self._heard_ms[source] = now
        if base_length <= self._newest.get(source, 0):
            return
        self._newest[source] = base_length
        if base_length in self._committed_ms:
            pace.replied(now - self._committed_ms[base_length])

    def retire(self, source: int) -> None:
        self._newest.pop(source, None)
        self._heard_ms.pop(source, None)

    def arrivals(self, among: Container[int], selection: Selection) -> tuple[Arrival, ...]:
        """What is to come of each remote next, and when."""
        found = []
        for source, pace in self._sources.paces.items():
            if pace.reply_ms is None or source not in among or not self._sources.counts(source):
                continue
            mass = selection.open_mass_of(source)
            next_ms = None
            heard_ms = self._heard_ms.get(source)
            if mass > 0 and heard_ms is not None:
                next_ms = heard_ms + pace.every_ms
            elif self._newest.get(source, 0) < self._length:
                committed_ms = self._committed_ms[self._length]
                next_ms = committed_ms + pace.reply_ms + pace.reply_deviation_ms
                mass = selection.probabilities[0] if selection.depth == 0 else 0.0
            if next_ms is not None:
                found.append(Arrival(next_ms, pace.every_ms, mass, source))
        return tuple(found)
