"""Home: what the drafter in the engine's own process is asked for, and how long it takes."""

from dataclasses import dataclass

from wanspec_kernels.control.pass_times import PassTimes
from wanspec_kernels.wire import Draft

PATIENCE_PASSES = 2.0  # of the target, that a draft pass is waited for
FIRST_GUESS = 0.125  # of a pass of the target, for one at home
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
    """At most one draft pass is under way."""

    def __init__(self) -> None:
        self.times = PassTimes(sizes=SIZES)
        self.passes = 0
        self.asked: frozenset[int] = frozenset()  # whose drafts are under way
        self._spent: set[int] = set()  # whom another pass brings nothing, until their next commit
        self._began_ms: float | None = None
        self.until_ms = 0.0  # how long the pass under way is waited for
        self._is_known = False

    @property
    def is_busy(self) -> bool:
        return self._began_ms is not None

    def has_more_for(self, request: int) -> bool:
        return request not in self._spent

    def pass_ms(self, requests: int, target_ms: float) -> float:
        if not self._is_known:
            return FIRST_GUESS * target_ms
        return self.times.ms(requests, 0)

    def is_awaited(self, now: float) -> bool:
        """A pass is under way, and has not taken longer than it is waited for."""
        return self._began_ms is not None and now < self.until_ms

    def begins(self, jobs: DraftAtHome, target_ms: float, now: float) -> None:
        self.asked = frozenset(job.request for job in jobs.jobs)
        self._began_ms, self.until_ms = now, now + PATIENCE_PASSES * target_ms

    def ends(self, now: float) -> float:
        """The pass under way has ended; returns how long it took, in ms."""
        assert self._began_ms is not None
        took_ms = now - self._began_ms
        self.times.observe(len(self.asked), 0, took_ms)
        self._began_ms, self._is_known = None, True
        self.asked = frozenset()
        self.passes += 1
        return took_ms

    def spent(self, request: int) -> None:
        self._spent.add(request)

    def forget(self, request: int) -> None:
        """Its text went on, or it ended."""
        self._spent.discard(request)
