"""KeepingUp: for how many requests one drafter's drafts still come in time."""

TOO_LATE_ROUNDS = 3.0  # A reply that takes so many target passes beyond the way knows an old text.
IN_TIME_ROUNDS = 1.5
JUDGED_MS = 1000.0  # between two changes


class KeepingUp:
    """Halves the seats that are used of a drafter that is late with its replies, or adds one.

    A drafter that serves more requests than its link or its GPU can carry is late with all of them.
    What its replies take beyond the way there and back is its own time, and grows with its load.
    """

    def __init__(self, max_seats: int, now: float) -> None:
        self.num_seats = self._max_seats = max_seats
        self._judged_ms = now

    def judge(self, num_requests: int, late_rounds: float | None, now: float) -> None:
        """`num_requests` it drafts for, and is so many target passes late with replies.

        None: no reply was timed.
        """
        if late_rounds is None or now - self._judged_ms < JUDGED_MS:
            return
        if late_rounds > TOO_LATE_ROUNDS:
            self.num_seats = max(1, min(self.num_seats, num_requests) // 2)
        elif late_rounds < IN_TIME_ROUNDS and self.num_seats < self._max_seats:
            self.num_seats += 1
        else:
            return
        self._judged_ms = now
