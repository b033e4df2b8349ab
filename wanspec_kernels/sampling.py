"""SamplingParams: how each request of a batch is sampled; and the filtered rows it defines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from wanspec_kernels.noise import weight

MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 100.0
# Less would be an empty nucleus, in float32 or wherever small numbers are flushed to 0.
LEAST_TOP_P = torch.finfo(torch.float32).tiny


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

        Numbers may be Python's, numpy's, torch's or fractions.

        Raises:
            ValueError: a value is out of range or of another kind, or a sequence has not `batch`
                entries; the message names the field and the value.
        """

        def reals(
            name: str, value: object, expected: str, is_valid: Callable[[Any], bool]
        ) -> Tensor:
            entries = _column(name, value, batch)
            for entry in entries:
                if not isinstance(entry, Real) or not is_valid(entry):
                    raise ValueError(f"{name}: expected {expected}, got {entry!r}")
            return torch.tensor([float(x) for x in entries], dtype=torch.float32).to(device)

        def integers(
            name: str, value: object, expected: str, valid: range, dtype: torch.dtype
        ) -> Tensor:
            entries = _column(name, value, batch)
            for entry in entries:
                if not isinstance(entry, Integral) or int(entry) not in valid:
                    raise ValueError(f"{name}: expected {expected}, got {entry!r}")
            return torch.tensor([int(x) for x in entries], dtype=dtype).to(device)

        return cls(
            reals(
                "temperature",
                temperature,
                f"0 or {MIN_TEMPERATURE}..{MAX_TEMPERATURE}",
                lambda t: t == 0 or MIN_TEMPERATURE <= t <= MAX_TEMPERATURE,
            ),
            integers("top_k", top_k, "0 (off) or a positive count", range(1 << 31), torch.int32),
            reals(
                "top_p",
                top_p,
                f"a number in (0, 1], {LEAST_TOP_P:.1e} at least",
                lambda p: LEAST_TOP_P <= p <= 1,
            ),
            reals("min_p", min_p, "a number in [0, 1]", lambda p: 0 <= p <= 1),
            integers(
                "seed", seed, "a signed 64-bit integer", range(-(1 << 63), 1 << 63), torch.int64
            ),
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


def _column(name: str, value: object, batch: int) -> list[Any]:
    """`value` for each request: a number, or a list or array with one of its own for each."""
    value = _plain(value)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return [value] * batch
    if len(value) != batch:
        raise ValueError(f"{name}: expected one value or {batch}, got {len(value)}")
    return [_plain(entry) for entry in value]


def _plain(value: Any) -> Any:
    """A number or an array of numpy's or torch's as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value
