"""Intervals: what several seeds say of a mean."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

# Student's t, 97.5 %, by degrees of freedom; beyond, the last.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
      2.145, 2.131, 2.120, 2.110, 2.101, 2.093)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Interval":
        """Of independent samples, two at least."""
        mean, freedom = fmean(samples), len(samples) - 1
        half = _T[min(freedom, len(_T)) - 1] * stdev(samples) / math.sqrt(len(samples))
        return cls(mean, mean - half, mean + half)
