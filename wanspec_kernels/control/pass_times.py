"""PassTimes: what a pass of the target takes, learnt while serving."""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

from wanspec_kernels.control.tuning import TUNING, Tuning

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)


class PassTimes:
    """Milliseconds over rows and context, both summed over a pass's requests.

    The time is ``f(rows) + slope * context``. `f` is a step for each of `sizes`, as a captured pass
    has room for so many rows and costs the same when some are empty; it never falls. Of a size's
    samples the lower quartile counts, since a pause only ever adds to one. A size that was not
    tried lies on the line between its neighbours, on that of the two largest below it, or on that
    from nothing to the smallest: it looks cheap until it has been tried, twice. But past a few
    times what was tried it is taken to cost in proportion, so that no single trial is dear.
    """

    def __init__(
        self,
        first_guess_ms: float = 30.0,
        sizes: Sequence[int] = SIZES,
        tuning: Tuning = TUNING,
    ) -> None:
        self._tuning = tuning
        self.sizes = tuple(sizes)
        self._first_guess_ms = first_guess_ms
        self._samples: dict[int, deque[tuple[int, float, float]]] = {}  # pass, context, ms
        self._passes = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=tuning.pass_samples)  # ms, rows
        self._spread = self._covariance = 0.0  # of contexts, and of times with them
        self._steps: list[float] | None = None

    def size_of(self, rows: int) -> int:
        """The index of the size that so many rows are counted as."""
        return min(bisect_left(self.sizes, rows), len(self.sizes) - 1)

    def observe(self, rows: int, context: int, ms: float) -> None:
        """A pass of so many rows over so many tokens of context took so long."""
        self._passes += 1
        self._recent.append((ms, rows))
        tuning = self._tuning
        samples = self._samples.setdefault(self.size_of(rows), deque(maxlen=tuning.pass_samples))
        if samples:
            mean_context = sum(c for _, c, _ in samples) / len(samples)
            middle_ms = sorted(each for _, _, each in samples)[len(samples) // 2]
            apart = context - mean_context
            self._spread = tuning.context_fading * self._spread + apart * apart
            longer = min(ms, self._most_ms(rows)) - middle_ms
            self._covariance = tuning.context_fading * self._covariance + apart * longer
        samples.append((self._passes, float(context), ms))
        self._steps = None

    @property
    def context_ms(self) -> float:
        """Of one token of context."""
        return max(0.0, self._covariance / (self._spread + self._tuning.least_spread**2))

    def ms(self, rows: int, context: int) -> float:
        """Expected of a pass."""
        return self.steps()[self.size_of(rows)] + self.context_ms * context

    @property
    def typical_ms(self) -> float:
        """Of the last passes, the lower quartile: how long one lasts that may be waited beside."""
        return self._typical[0]

    @property
    def _typical(self) -> tuple[float, int]:
        if not self._recent:
            return self._first_guess_ms, 1
        return sorted(self._recent)[len(self._recent) // 4]

    def _most_ms(self, rows: int) -> float:
        """What takes longer was a pause: no pass takes more than in proportion to its rows."""
        ms, typical_rows = self._typical
        few = max(typical_rows, self._tuning.few_rows)
        return self._tuning.max_round_passes * ms * max(1.0, rows / few)

    def row_ms(self, rows: int) -> float:
        """Of one row more, on average up to twice as many."""
        return (self.ms(2 * rows, 0) - self.ms(rows, 0)) / rows

    def steps(self) -> list[float]:
        """Of each size, without what the context costs."""
        if self._steps is None:
            self._steps = self._fit()
        return self._steps

    def _fit(self) -> list[float]:
        slope = self.context_ms
        blocks: list[tuple[float, int, list[int]]] = []  # ms, samples, sizes that share them
        # Once slow may have been a pause; a size that was tried once is tried again.
        least = 2 if any(len(samples) > 1 for samples in self._samples.values()) else 1
        for size in sorted(self._samples):
            samples = self._samples[size]
            while samples and self._passes - samples[0][0] > self._tuning.pass_max_age:
                samples.popleft()
            most_ms = self._most_ms(self.sizes[size])
            times = sorted(ms - slope * context for _, context, ms in samples if ms <= most_ms)
            if len(times) < least:
                continue
            block = (times[len(times) // 4], len(times), [size])
            while blocks and blocks[-1][0] > block[0]:  # more rows never take less: they share
                ms, count, members = blocks.pop()
                total = count + block[1]
                mean = (ms * count + block[0] * block[1]) / total
                block = (mean, total, members + block[2])
            blocks.append(block)
        known = {member: max(1e-3, ms) for ms, _, members in blocks for member in members}
        return self._between(known)

    def _between(self, known: dict[int, float]) -> list[float]:
        if not known:
            return [self._first_guess_ms] * len(self.sizes)
        points = sorted(known)
        found = []
        for size, rows in enumerate(self.sizes):
            above = bisect_left(points, size)
            if above == 0:
                found.append(known[points[0]] * rows / self.sizes[points[0]])
            elif above < len(points):
                left, right = points[above - 1], points[above]
                found.append(self._line(known, left, right, rows))
            else:
                left, right = points[max(0, above - 2)], points[above - 1]
                ms = self._untried_ms(known[right], self.sizes[right], rows)
                found.append(max(ms, self._line(known, left, right, rows)))
        return found

    def _untried_ms(self, ms: float, tried: int, rows: int) -> float:
        """The least that so many rows are taken to cost; the most that was tried took `ms`."""
        tuning = self._tuning
        free = max(tuning.untried_rows, tuning.untried_growth * tried)
        return ms * max(1.0, rows / free)

    def _line(self, known: dict[int, float], left: int, right: int, rows: int) -> float:
        if left == right:
            return known[left]
        span = self.sizes[right] - self.sizes[left]
        share = (rows - self.sizes[left]) / span
        return known[left] + share * (known[right] - known[left])
