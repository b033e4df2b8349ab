"""KeepingUp: for how many requests one drafter's drafts still come in time."""

from wanspec_kernels.drafts.outcome import Kind

MIN_DRAFTS = 16  # between two judgements
TOO_LATE = 0.5  # of its drafts; then it is asked to draft for half as many requests
GROWS_MS = 1000.0  # until it is tried with one more


class KeepingUp:
    """Halves the seats that are used of a drafter which is mostly late, and raises them by one.

    A drafter that serves more requests than its link or its GPU can carry is late with all of them,
    so what it says is stale when it comes.
    """

    def __init__(self, max_seats: int, now: float) -> None:
        self.num_seats = self._max_seats = max_seats
        self._num_drafts = self._num_stale = 0
        self._judged_ms = now

    def observe(self, kind: Kind) -> None:
        self._num_drafts += 1
        self._num_stale += kind is Kind.STALE

    def judge(self, num_requests: int, now: float) -> bool:
        """Whether the seats have changed; `num_requests` is what it drafts for."""
        if self._num_drafts >= MIN_DRAFTS and self._num_stale > TOO_LATE * self._num_drafts:
            seats = max(1, min(self.num_seats, num_requests) // 2)
        elif now - self._judged_ms >= GROWS_MS:
            seats = min(self._max_seats, self.num_seats + 1)
        else:
            return False
        changed, self.num_seats = seats != self.num_seats, seats
        self._num_drafts = self._num_stale = 0
        self._judged_ms = now
        return changed
