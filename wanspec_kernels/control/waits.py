"""Waits: how long an idle target waits for drafts of remotes, whatever its policy asks for."""

from wanspec_kernels.control.policy import MAX_WAIT_MS, MIN_WAIT_MS


class Waits:
    """Each wait of a request has an end, and a round's add up to `MAX_WAIT_MS` at most."""

    def __init__(self) -> None:
        self.until_ms: float | None = None  # None: nothing is waited for
        self.round_ms = 0.0  # waited since the last commit
        self._began_ms = 0.0

    def begin(self, until_ms: float, now: float) -> bool:
        """Wait as long as the round allows; False where that is not worth a wait, or no number."""
        until_ms = min(until_ms, now + MAX_WAIT_MS - self.round_ms)
        if not until_ms - now >= MIN_WAIT_MS:  # NaN, which is the smaller one here, is not
            return False
        self.until_ms, self._began_ms = until_ms, now
        return True

    def end(self, now: float) -> float:
        """How long the wait was; 0 where there was none."""
        if self.until_ms is None:
            return 0.0
        self.until_ms = None
        waited_ms = now - self._began_ms
        self.round_ms += waited_ms
        return waited_ms

    def committed(self) -> None:
        self.round_ms = 0.0
