"""RowBudget: how many rows of a tree are worth the target's time."""

from collections import deque
from collections.abc import Sequence
from statistics import median

SIZES = (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)

# Rows that all together cost less of a pass are free. What is measured then is noise, and a window
# in which no late row was accepted, as most are, would have the smallest trees win.
FREE_SHARE = 0.05


class RowBudget:
    """Learns what more rows cost and what they bring, and takes the most tokens a millisecond.

    Where memory is the limit, as on a GPU, a row more costs next to nothing and the budget is
    `max_rows`; on a CPU 64 rows may take four times as long as one. What a smaller tree would have
    brought is read off a larger one: rows stand in order of preference, so it would have kept the
    accepted nodes that stand before its end. Every `probe_every` rounds a pass of `max_rows` looks
    whether things have changed.
    """

    def __init__(self, max_rows: int, *, probe_every: int = 16, fading: float = 0.95) -> None:
        self.max_rows = max_rows
        self._sizes = (*(size for size in SIZES if size < max_rows), max_rows)
        self._probe_every = probe_every
        self._fading = fading
        self._rounds = 0
        self._weights = dict.fromkeys(self._sizes, 0.0)
        self._accepted = dict.fromkeys(self._sizes, 0.0)
        self._times: dict[int, deque[float]] = {}  # by size, of passes over at most as many rows
        self._idle_ms = 0.0  # of a round

    def choose(self) -> int:
        """Rows of the next tree at most; the same until the next `observe`."""
        line = self._line()
        if line is None or self._rounds % self._probe_every == 0:
            return self.max_rows
        at_one_row_ms, row_ms = line
        if row_ms * (self.max_rows - 1) < FREE_SHARE * at_one_row_ms:
            return self.max_rows

        def rate(size: int) -> float:
            tokens = 1.0 + self._accepted[size] / self._weights[size]
            return tokens / (at_one_row_ms + row_ms * (size - 1) + self._idle_ms)

        known = [size for size in self._sizes if self._weights[size] > 0]
        return max(reversed(known), key=rate, default=self.max_rows)

    def observe(
        self,
        num_rows: int,
        max_rows: int,
        accepted_nodes: Sequence[int],
        pass_ms: float,
        idle_ms: float,
    ) -> None:
        """A round ended whose tree had `num_rows` out of at most `max_rows`."""
        self._rounds += 1
        self._idle_ms += 0.1 * (idle_ms - self._idle_ms)
        bucket = next((size for size in self._sizes if num_rows <= size), self.max_rows)
        self._times.setdefault(bucket, deque(maxlen=9)).append(pass_ms)
        whole = num_rows < max_rows  # a larger budget would not have changed the tree
        for size in self._sizes:
            if size <= max_rows or whole:
                kept = sum(node < size for node in accepted_nodes)
                self._weights[size] = self._fading * self._weights[size] + 1.0
                self._accepted[size] = self._fading * self._accepted[size] + kept

    def _line(self) -> tuple[float, float] | None:
        """ms of a pass over one row and of each row more: least squares over the sizes' medians."""
        if len(self._times) < 2:
            return None
        points = [(size - 1.0, median(times)) for size, times in self._times.items()]
        mean_x = sum(x for x, _ in points) / len(points)
        mean_y = sum(y for _, y in points) / len(points)
        spread = sum((x - mean_x) ** 2 for x, _ in points)
        slope = max(0.0, sum((x - mean_x) * (y - mean_y) for x, y in points) / spread)
        at_one_row_ms = max(mean_y - slope * mean_x, 1e-3)
        return at_one_row_ms, slope
