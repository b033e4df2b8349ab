"""SamplingParams: how each request of a batch is sampled; and the filtered rows it defines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from wanspec_kernels.noise import weight

MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 100.0

T = TypeVar("T", int, float)


@dataclass(frozen=True)
class SamplingParams:
    """One value a request; all tensors are [batch], on the device of the logits.

    Filters act in the engines' order: `top_k` on the logits, `top_p` on what it left, `min_p`
    against the largest probability. Equal logits are kept or dropped together. At temperature 0 the
    largest logit wins (the lowest id among equals) and filters and seed have no say.
    """

    temperature: Tensor  # float32, 0 or MIN_TEMPERATURE..MAX_TEMPERATURE
    top_k: Tensor  # int32, 0 = off
    top_p: Tensor  # float32, 1 = off
    min_p: Tensor  # float32, 0 = off
    seed: Tensor  # int64

    @classmethod
    def build(
        cls,
        batch: int,
        *,
        temperature: float | Sequence[float] = 0.0,
        top_k: int | Sequence[int] = 0,
        top_p: float | Sequence[float] = 1.0,
        min_p: float | Sequence[float] = 0.0,
        seed: int | Sequence[int] = 0,
        device: torch.device | str = "cpu",
    ) -> "SamplingParams":
        """Check the values on the host and move them to `device`; a scalar serves every request.

        Raises:
            ValueError: a value is out of range or a sequence has not `batch` entries.
        """
        bounds = f"0 or {MIN_TEMPERATURE}..{MAX_TEMPERATURE}"
        temperatures = _column("temperature", temperature, batch)
        for t in temperatures:
            if t != 0 and not MIN_TEMPERATURE <= t <= MAX_TEMPERATURE:
                raise ValueError(f"temperature: expected {bounds}, got {t}")
        ks = _column("top_k", top_k, batch)
        for k in ks:
            if not 0 <= k < 1 << 31:
                raise ValueError(f"top_k: expected 0 (off) or a positive count, got {k}")
        top_ps = _column("top_p", top_p, batch)
        for p in top_ps:
            if not 0 < p <= 1:
                raise ValueError(f"top_p: expected a number in (0, 1], got {p}")
        min_ps = _column("min_p", min_p, batch)
        for p in min_ps:
            if not 0 <= p <= 1:
                raise ValueError(f"min_p: expected a number in [0, 1], got {p}")
        seeds = _column("seed", seed, batch)
        for s in seeds:
            if not -(1 << 63) <= s < 1 << 63:
                raise ValueError(f"seed: expected a signed 64-bit integer, got {s}")
        return cls(
            torch.tensor(temperatures, dtype=torch.float32).to(device),
            torch.tensor(ks, dtype=torch.int32).to(device),
            torch.tensor(top_ps, dtype=torch.float32).to(device),
            torch.tensor(min_ps, dtype=torch.float32).to(device),
            torch.tensor(seeds, dtype=torch.int64).to(device),
        )

    @property
    def batch(self) -> int:
        return self.temperature.shape[0]


def inverse_temperature(temperature: Tensor) -> Tensor:
    """1 / T, float32 and rounded once; 0 where the temperature is 0, which stands for greedy."""
    greedy = temperature == 0
    return torch.where(greedy, 0.0, 1.0 / torch.where(greedy, 1.0, temperature))


def cutoff(
    logits: Tensor, inverse_temperature: float, top_k: int, top_p: float, min_p: float
) -> float:
    """The smallest logit of one row ([vocab], float32) that its filters keep.

    Every filter keeps a row's largest logits down to some value, so the three together are one
    threshold. Masses are the fixed-point `noise.weight`: their sums are exact, whatever the order.
    """
    values, counts = torch.unique(logits, return_counts=True)
    values, counts = values.flip(0), counts.flip(0)  # descending
    if top_k:
        # A group of equals is kept when fewer than top_k logits lie above it.
        above = counts.cumsum(0) - counts
        values, counts = values[above < top_k], counts[above < top_k]
    weights = weight((values - values[0]) * inverse_temperature)
    masses = weights * counts
    floor = _as_float32(min_p) * weights[0].double()
    keep = weights.double() >= floor
    # Off, top_p keeps even what is too rare for a weight above 0.
    if _as_float32(top_p) < 1:
        nucleus = _as_float32(top_p) * masses.sum().double()
        keep &= (masses.cumsum(0) - masses).double() < nucleus
    return float(values[keep][-1])


def _as_float32(value: float) -> Tensor:
    """The value a kernel reads, as float64."""
    return torch.tensor(value, dtype=torch.float32).double()


def _column(name: str, value: T | Sequence[T], batch: int) -> list[T]:
    if isinstance(value, int | float):
        return [value] * batch
    if len(value) != batch:
        raise ValueError(f"{name}: expected one value or {batch}, got {len(value)}")
    return list(value)
