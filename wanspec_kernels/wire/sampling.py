"""Sampling: how one request is sampled, as one value on the host."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from wanspec_kernels.sampling import LEAST_TOP_P, MAX_TEMPERATURE, MIN_TEMPERATURE
from wanspec_kernels.wire.limits import MAX_DRAWS

Rule = Literal["match", "rejection"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Temperature, filters and seed as in `SamplingParams`, and how drafts are accepted.

    Raises:
        ValueError: a value is out of range.
    """

    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0  # 1 is off
    min_p: float = 0.0  # 0 is off
    seed: int = 0
    rule: Rule = "match"
    share_seed: bool = True  # Under `match` drafters may rank by the target's own noise.
    num_draws: int = 4  # Under `rejection` each source draws so often at each expanded node,
    replacement: bool = False  # with or without putting the token back.

    def __post_init__(self) -> None:
        t = self.temperature
        if not isfinite(t) or (t != 0 and not MIN_TEMPERATURE <= t <= MAX_TEMPERATURE):
            raise ValueError(
                f"temperature: expected 0 or {MIN_TEMPERATURE}..{MAX_TEMPERATURE}, got {t}"
            )
        if not 0 <= self.top_k < 1 << 31:
            raise ValueError(f"top_k: expected 0 (off) or a positive count, got {self.top_k}")
        if not LEAST_TOP_P <= self.top_p <= 1:
            raise ValueError(f"top_p: expected a number in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p: expected a number in [0, 1], got {self.min_p}")
        if not -(1 << 63) <= self.seed < 1 << 63:
            raise ValueError(f"seed: expected a signed 64-bit integer, got {self.seed}")
        if self.rule not in ("match", "rejection"):
            raise ValueError(f"rule: expected 'match' or 'rejection', got {self.rule!r}")
        if not 1 <= self.num_draws <= MAX_DRAWS:
            raise ValueError(f"num_draws: expected 1..{MAX_DRAWS}, got {self.num_draws}")

    @property
    def shared_seed(self) -> int | None:
        """What a remote drafter may know of the seed.

        Under `rejection` acceptance coins come from it: who knows them can choose what passes.
        """
        return self.seed if self.share_seed and self.rule == "match" else None
