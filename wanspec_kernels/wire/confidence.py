"""How sure a drafter is of a token: a code on the wire, and what the code turns out to be worth."""

from collections.abc import Iterable
from math import log, log2

STEPS_AN_OCTAVE = 16
MAX_CODE = 255
UNKNOWN = 255  # of a node whose draft says nothing about it

CLAIMED = tuple(2.0 ** (-code / STEPS_AN_OCTAVE) for code in range(MAX_CODE + 1))
"""The probability that each code stands for."""

FINE_CODES = 32  # down to a quarter: in steps of four codes
BUCKET_OF = tuple(
    code // 4 if code < FINE_CODES else FINE_CODES // 4 + (code - FINE_CODES) // 16
    for code in range(MAX_CODE + 1)
)
NUM_BUCKETS = BUCKET_OF[-1] + 1
MAX_PROBABILITY = 0.995


def code_of(probability: float) -> int:
    """The code nearest to a probability; what is less than 2^-15.9 counts as that.

    >>> code_of(1.0), code_of(0.5), code_of(0.0)
    (0, 16, 255)
    """
    if probability <= CLAIMED[-1]:
        return MAX_CODE
    return max(0, round(-STEPS_AN_OCTAVE * log2(probability)))


class Calibration:
    """Learns what one drafter's codes are worth: hits over what was claimed, code by code.

    `weight` expected hits of a perfect drafter stand before the first observation in each bucket of
    codes, and every observation fades, so that a drafter that changes is followed.
    """

    def __init__(self, *, weight: float = 4.0, fading: float = 0.998) -> None:
        self._weight = weight
        self._fading = fading
        self._claimed = [0.0] * NUM_BUCKETS
        self._hits = [0.0] * NUM_BUCKETS
        self._table: list[float] | None = None
        self._logs: list[float] | None = None

    @property
    def table(self) -> list[float]:
        """The probability of each code."""
        if self._table is None:
            factors = [
                (self._weight + hits) / (self._weight + claimed)
                for hits, claimed in zip(self._hits, self._claimed, strict=True)
            ]
            self._table = [
                min(MAX_PROBABILITY, claimed * factors[bucket])
                for claimed, bucket in zip(CLAIMED, BUCKET_OF, strict=True)
            ]
        return self._table

    @property
    def logs(self) -> list[float]:
        """Natural logarithms of `table`."""
        if self._logs is None:
            self._logs = [log(p) for p in self.table]
        return self._logs

    def observe(self, codes: Iterable[int], hit: int | None) -> None:
        """One token was decided that had proposals with these codes; `hit` is that of the right."""
        for code in codes:
            bucket = BUCKET_OF[code]
            self._claimed[bucket] = self._fading * self._claimed[bucket] + CLAIMED[code]
            self._hits[bucket] *= self._fading
        if hit is not None:
            self._hits[BUCKET_OF[hit]] += 1.0
        self._table = self._logs = None
