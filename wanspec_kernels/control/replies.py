"""Replies: when remotes are heard after a commit, as far as one request has seen it."""

from collections.abc import Container

from wanspec_kernels.control.estimates import Estimates
from wanspec_kernels.control.policy import Arrival
from wanspec_kernels.drafts.selection import Selection

MAX_COMMITS_TIMED = 64
SILENT_PASSES = 1.5  # of the target; a remote not heard for so long, and a reply more, has gone


class Replies:
    """Times commits and the first drafts that know of them; their paces go to `estimates`."""

    def __init__(self, estimates: Estimates) -> None:
        self._estimates = estimates
        self._newest: dict[int, int] = {}  # by source: the base length heard of
        self._committed_ms: dict[int, float] = {}  # by length
        self._length = 0

    def committed(self, length: int, now: float) -> None:
        self._length = length
        self._committed_ms[length] = now
        if len(self._committed_ms) > MAX_COMMITS_TIMED:
            del self._committed_ms[next(iter(self._committed_ms))]

    def heard(self, source: int, base_length: int, now: float) -> None:
        """A draft of a remote came."""
        pace = self._estimates.pace(source)
        pace.heard(now, self._estimates.target_pass_ms)
        if base_length <= self._newest.get(source, 0):
            return
        self._newest[source] = base_length
        if base_length in self._committed_ms:
            pace.replied(now - self._committed_ms[base_length])

    def retire(self, source: int) -> None:
        self._newest.pop(source, None)

    def soonest_ms(self, among: Container[int], now: float) -> float | None:
        """The soonest reply, after a commit, of a remote that counts and has not fallen silent."""
        patience_ms = SILENT_PASSES * self._estimates.target_pass_ms
        return min(
            (
                pace.reply_ms
                for source, pace in self._estimates.paces.items()
                if source in among
                and self._estimates.counts(source)
                and pace.reply_ms is not None
                and pace.heard_ms is not None
                and now - pace.heard_ms < pace.reply_ms + patience_ms
            ),
            default=None,
        )

    def arrivals(self, among: Container[int], selection: Selection) -> tuple[Arrival, ...]:
        """What is to come of each remote next, and when."""
        found = []
        for source, pace in self._estimates.paces.items():
            if pace.reply_ms is None or source not in among or not self._estimates.counts(source):
                continue
            mass = selection.open_mass_of(source)
            next_ms = None
            if mass > 0 and pace.heard_ms is not None:
                next_ms = pace.heard_ms + pace.every_ms
            elif self._newest.get(source, 0) < self._length:
                committed_ms = self._committed_ms[self._length]
                next_ms = committed_ms + pace.reply_ms + pace.reply_deviation_ms
                mass = selection.probabilities[0] if selection.depth == 0 else 0.0
            if next_ms is not None:
                found.append(Arrival(next_ms, pace.every_ms, mass, source))
        return tuple(found)
