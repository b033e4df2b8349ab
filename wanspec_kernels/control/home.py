"""Home: what the drafter in the engine's own process is asked for, and how long it takes."""

from collections.abc import Set
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
    first and each time twice as late. One that reads text, such as a prompt, takes longer than
    those after it and says nothing of them.
    """

    def __init__(self, tuning: Tuning = TUNING) -> None:
        self._tuning = tuning
        self._times = PassTimes(sizes=SIZES, tuning=tuning)
        self.passes = 0
        self.asked: frozenset[int] = frozenset()  # whose drafts are under way
        self._spent: set[int] = set()  # whom another pass brings nothing, until their next commit
        self._began_ms: float | None = None
        self.until_ms = 0.0  # how long the pass under way is waited for
        self._read: dict[int, int] = {}  # tokens that it has read of each request's text
        self._reading: dict[int, int] = {}  # and will have after the pass under way
        self._unsettled: tuple[int, float] | None = None  # size and begin of the last pass
        self._samples = self._retries = 0
        self._last_ms = 0.0
        self._idle_ms = self._weighed_ms = 0.0  # since its last pass, up to when it was last asked

    @property
    def is_busy(self) -> bool:
        return self._began_ms is not None

    def has_more_for(self, request: int) -> bool:
        return request not in self._spent

    def pass_ms(self, requests: int, target_ms: float, now: float) -> float:
        """What a draft pass for so many is expected to take."""
        # A longer step was a pause, or a clock that jumped, and home was not idle for it.
        most_ms = self._tuning.home_patience_passes * target_ms
        self._idle_ms += min(now - self._weighed_ms, most_ms)
        self._weighed_ms = now
        if self._samples and self._idle_ms > self._retry_ms:
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
        self._reading = {job.request: len(job.token_ids) for job in jobs.jobs}
        self._began_ms, self.until_ms = now, now + self._tuning.home_patience_passes * target_ms

    def ends(self, now: float, unread: Set[int] = frozenset()) -> None:
        """The pass under way has ended; of the `unread` requests it has not read all the text."""
        assert self._began_ms is not None
        if not unread and not self._has_read():
            self._unsettled = (len(self.asked), self._began_ms)
        for request, length in self._reading.items():
            if request not in unread:
                self._read[request] = length
        self._reading = {}
        self._began_ms = None
        self.asked = frozenset()
        self.passes += 1

    def settle(self, now: float) -> None:
        """What the last pass brought has been merged: what it cost counts up to here."""
        if self._unsettled is None:
            return
        size, began_ms = self._unsettled
        self._unsettled = None
        self._last_ms = max(1e-3, min(now, self.until_ms) - began_ms)
        self._times.observe(size, 0, self._last_ms)
        self._idle_ms, self._weighed_ms = 0.0, now
        self._samples += 1
        if self._samples >= self._tuning.pass_samples:
            self._retries = 0

    def _has_read(self) -> bool:
        """The pass under way has taken in more than news."""
        return any(
            length - self._read.get(request, 0) > self._tuning.most_news
            for request, length in self._reading.items()
        )

    def spent(self, request: int) -> None:
        self._spent.add(request)

    def went_on(self, request: int) -> None:
        """Its text did: there is something to draft again."""
        self._spent.discard(request)

    def forget(self, request: int) -> None:
        """It has ended, or home has failed for it and would have to read its text anew."""
        self._spent.discard(request)
        self._read.pop(request, None)
        self._reading.pop(request, None)
