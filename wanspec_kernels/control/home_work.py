"""HomeWork: what one request asks of the drafter at home, and how long it waits for it."""

from math import inf

from wanspec_kernels.control.estimates import Estimates
from wanspec_kernels.wire import MAX_DEPTH

MAX_PASSES = MAX_DEPTH  # of a round, whatever a policy asks for; one for each level there may be


class HomeWork:
    """At most one draft is under way; how long they take goes to `estimates`."""

    def __init__(self, estimates: Estimates, *, is_there: bool) -> None:
        self.is_there = is_there
        self.passes = 0  # asked for since the last commit
        self.until_ms = inf  # how long the draft under way may take
        self.is_awaited = False  # by the target, which is idle
        self.is_spent = False  # until the next commit
        self._estimates = estimates
        self._began_ms: float | None = None  # None: it is not at work
        self._passes_asked = 0
        self._asked_to_read = False
        self._reads = True  # when it is asked next

    @property
    def is_busy(self) -> bool:
        return self._began_ms is not None

    def may_bring_more(self, now: float) -> bool:
        return self.allows(1, now) > 0

    def allows(self, passes: int, now: float) -> int:
        """How many of these passes may be asked for, or awaited if home is busy with some."""
        if not self.is_there or self.is_spent or (self.is_busy and now >= self.until_ms):
            return 0
        left = passes if self.is_busy else MAX_PASSES - self.passes
        return max(0, min(passes, left))

    def begins(self, passes: int, now: float) -> None:
        self.passes += passes
        self.until_ms = now + passes * self._estimates.home_patience_ms
        self._began_ms, self._passes_asked = now, passes
        self._asked_to_read, self._reads = self._reads, False

    def ends(self, now: float, *, drafted: bool) -> int:
        """Returns the passes that were made.

        Raises:
            RuntimeError: it was not at work.
        """
        if self._began_ms is None:
            raise RuntimeError("home: expected an answer only to a DraftAtHome")
        took_ms, self._began_ms = now - self._began_ms, None
        if not drafted:  # it failed, or its tree is as large as it gets: so it would be again
            self.is_spent = True
            return 0
        self._estimates.observe_home(took_ms, self._passes_asked, reads=self._asked_to_read)
        return self._passes_asked

    def committed(self) -> None:
        self.passes = 0
        self.is_spent = False
        self._reads = True
