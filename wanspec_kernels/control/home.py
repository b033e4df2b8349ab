"""Home: what the drafter in the engine's own process is asked for, and how long it takes."""

from collections.abc import Set
from dataclasses import dataclass

from wanspec_kernels.control.pass_times import PassTimes
from wanspec_kernels.wire import Draft

PATIENCE_PASSES = 2.0  # of the target, that a draft pass is waited for
FIRST_GUESS = 0.125  # of a pass of the target, for one at home
MOST_NEWS = 32  # tokens that a pass takes in beside drafting; where there are more, it reads
RETRY, MAX_RETRY = 32, 1024  # passes of the target without home before it is tried again
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

    A pass that reads text, such as a prompt, takes longer than those after it, and says nothing of
    them. A home that was found too slow to be worth its time is tried again after a while, and
    each time after twice as long: what slowed it down may be over.
    """

    def __init__(self) -> None:
        self.times = PassTimes(sizes=SIZES)
        self.passes = 0
        self.asked: frozenset[int] = frozenset()  # whose drafts are under way
        self._spent: set[int] = set()  # whom another pass brings nothing, until their next commit
        self._began_ms: float | None = None
        self.until_ms = 0.0  # how long the pass under way is waited for
        self._is_known = False
        self._read: dict[int, int] = {}  # tokens that it has read of each request's text
        self._reading: dict[int, int] = {}  # and will have after the pass under way
        self._is_reading = False  # The pass under way takes in more than news.
        self._passed_over = 0  # passes of the target since its last one
        self._retry = RETRY

    @property
    def is_busy(self) -> bool:
        return self._began_ms is not None

    def has_more_for(self, request: int) -> bool:
        return request not in self._spent

    def pass_ms(self, requests: int, target_ms: float) -> float:
        if not self._is_known or self._passed_over >= self._retry:
            return FIRST_GUESS * target_ms
        return self.times.ms(requests, 0)

    def is_awaited(self, now: float) -> bool:
        """A pass is under way, and has not taken longer than it is waited for."""
        return self._began_ms is not None and now < self.until_ms

    def begins(self, jobs: DraftAtHome, target_ms: float, now: float) -> None:
        self.asked = frozenset(job.request for job in jobs.jobs)
        self._reading = {job.request: len(job.token_ids) for job in jobs.jobs}
        self._is_reading = any(
            length - self._read.get(request, 0) > MOST_NEWS
            for request, length in self._reading.items()
        )
        self._began_ms, self.until_ms = now, now + PATIENCE_PASSES * target_ms
        if self._passed_over >= self._retry:
            self.times, self._is_known = PassTimes(sizes=SIZES), False
            self._retry = min(2 * self._retry, MAX_RETRY)
        elif self._is_known:
            self._retry = RETRY
        self._passed_over = 0

    def ends(self, now: float, unread: Set[int] = frozenset()) -> None:
        """The pass under way has ended; of the `unread` requests it has not read all the text."""
        assert self._began_ms is not None
        if not self._is_reading and not unread:
            self.times.observe(len(self.asked), 0, now - self._began_ms)
            self._is_known = True
        for request, length in self._reading.items():
            if request not in unread:
                self._read[request] = length
        self._reading = {}
        self._began_ms = None
        self.asked = frozenset()
        self.passes += 1

    def spent(self, request: int) -> None:
        self._spent.add(request)

    def target_began(self) -> None:
        """A pass of the target."""
        self._passed_over += 1

    def went_on(self, request: int) -> None:
        """Its text did: there is something to draft again."""
        self._spent.discard(request)

    def forget(self, request: int) -> None:
        """It has ended, or home has failed for it and would have to read its text anew."""
        self._spent.discard(request)
        self._read.pop(request, None)
        self._reading.pop(request, None)
