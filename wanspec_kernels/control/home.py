"""Home: what the drafter in the engine's own process is asked for, and how long it takes."""

from dataclasses import dataclass

from wanspec_kernels.control.pass_times import PassTimes
from wanspec_kernels.control.tuning import TUNING, Tuning
from wanspec_kernels.wire import Draft

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # requests of a draft pass


@dataclass(frozen=True, slots=True)
class HomeJob:
    """One request's part of a draft pass at home."""

    request: int
    token_ids: tuple[int, ...]  # all that is committed
    known: Draft | None  # what is here already, to grow on


@dataclass(frozen=True, slots=True)
class DraftAtHome:
    """One pass of the draft model for all these requests."""

    jobs: tuple[HomeJob, ...]


class Home:
    """At most one draft pass is under way.

    One that takes longer than it is waited for counts for as long as that. Home is then not asked,
    as nothing that slow pays, but it may only have been warming up: it is tried again, soon at
    first and each time twice as late.
    """

    def __init__(self, tuning: Tuning = TUNING) -> None:
        self._tuning = tuning
        self._times = PassTimes(sizes=SIZES, tuning=tuning)
        self.passes = 0
        self.asked: frozenset[int] = frozenset()  # whose drafts are under way
        self._spent: set[int] = set()  # whom another pass brings nothing, until their next commit
        self._began_ms: float | None = None
        self.until_ms = 0.0  # how long the pass under way is waited for
        self._samples = self._retries = 0
        self._ended_ms = self._last_ms = 0.0

    @property
    def is_busy(self) -> bool:
        return self._began_ms is not None

    def has_more_for(self, request: int) -> bool:
        return request not in self._spent

    def pass_ms(self, requests: int, target_ms: float, now: float) -> float:
        """What a draft pass for so many is expected to take."""
        if self._samples and now - self._ended_ms > self._retry_ms:
            self._times = PassTimes(sizes=SIZES, tuning=self._tuning)
            self._samples = 0
            self._retries += 1
        if not self._samples:
            return self._tuning.first_home_share * target_ms
        return self._times.ms(requests, 0)

    @property
    def _retry_ms(self) -> float:
        t = self._tuning
        after = t.home_retry
        if self._samples < t.pass_samples:
            after = min(after, t.first_home_retry * 2**self._retries)
        return after * self._last_ms

    def is_awaited(self, now: float) -> bool:
        """A pass is under way, and has not taken longer than it is waited for."""
        return self._began_ms is not None and now < self.until_ms

    def begins(self, jobs: DraftAtHome, target_ms: float, now: float) -> None:
        self.asked = frozenset(job.request for job in jobs.jobs)
        self._began_ms, self.until_ms = now, now + self._tuning.home_patience_passes * target_ms

    def ends(self, now: float) -> None:
        assert self._began_ms is not None
        self._last_ms = max(1e-3, min(now, self.until_ms) - self._began_ms)
        self._times.observe(len(self.asked), 0, self._last_ms)
        self._began_ms, self._ended_ms = None, now
        self._samples += 1
        if self._samples >= self._tuning.pass_samples:
            self._retries = 0
        self.asked = frozenset()
        self.passes += 1

    def spent(self, request: int) -> None:
        self._spent.add(request)

    def forget(self, request: int) -> None:
        """Its text went on, or it ended."""
        self._spent.discard(request)
