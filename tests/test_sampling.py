"""SamplingParams, and the cutoff of its filters against sorting in float64."""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from wanspec_kernels.sampling import SamplingParams, cutoff, inverse_temperature


def cutoff_by_sorting(
    logits: np.ndarray, inverse_temperature: float, top_k: int, top_p: float, min_p: float
) -> float:
    """One filter after the other on probabilities; equal logits stay or go together."""
    kept = np.sort(logits.astype(np.float64))[::-1]
    if top_k:
        kept = kept[kept >= kept[min(top_k, len(kept)) - 1]]
    p = np.exp((kept - kept[0]) * inverse_temperature)
    p /= p.sum()
    least = kept[-1]
    if top_p < 1:
        above = np.array([p[kept > value].sum() for value in kept])
        least = max(least, kept[above < top_p][-1])
    if min_p > 0:
        least = max(least, kept[p >= min_p * p[0]][-1])
    return float(least)


@pytest.mark.parametrize("seed", range(60))
def test_cutoff(seed: int, device: str) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=rng.choice([1, 2, 63, 400])) * 3).astype(np.float32)
    if seed % 2:
        logits = np.round(logits)  # ties everywhere
    logits[rng.random(len(logits)) < 0.1] = -np.inf
    logits[0] = 0.0
    # No filter's bound falls on a sum of few weights, where float64 and fixed point could differ.
    arguments = (
        float(np.float32(rng.choice([0.5, 1.0, 3.0]))),
        int(rng.choice([0, 1, 5, 50, 1000])),
        float(rng.choice([1.0, 0.90123, 0.30123, 0.012345])),
        float(rng.choice([0.0, 0.051234, 0.51234])),
    )
    actual = cutoff(torch.tensor(logits, device=device), *arguments)
    assert actual == cutoff_by_sorting(logits, *arguments)


def test_ties_at_a_cutoff_stay_together() -> None:
    logits = torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0, 0.0])
    assert cutoff(logits, 1.0, 3, 1.0, 0.0) == 1.0
    assert cutoff(logits, 1.0, 2, 1.0, 0.0) == 2.0
    assert cutoff(torch.tensor([0.0, -0.0, -1.0]), 1.0, 1, 1.0, 0.0) == 0.0


def test_top_p_acts_on_what_top_k_left() -> None:
    """Of 8 equal shares, top_k leaves 4 + the rest's; 0.6 of the renormalised, not of all."""
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # top_k = 2 leaves 4/7 and 3/7: 0.5 of them is one token; of all it would be two.
    assert cutoff(logits, 1.0, 2, 0.5, 0.0) == float(logits[0])
    assert cutoff(logits, 1.0, 0, 0.5, 0.0) == float(logits[1])


def test_off_keeps_even_the_rarest() -> None:
    logits = torch.tensor([0.0, -50.0])
    assert cutoff(logits, 1.0, 0, 1.0, 0.0) == -50.0
    assert cutoff(logits, 1.0, 2, 1.0, 0.0) == -50.0


def test_build_takes_one_value_or_one_a_request(device: str) -> None:
    sampling = SamplingParams.build(
        3, temperature=[0.0, 0.5, 2.0], top_k=7, seed=[1, -(1 << 63), 3], device=device
    )
    assert sampling.batch == 3
    assert inverse_temperature(sampling.temperature).tolist() == [0.0, 2.0, 0.5]
    assert sampling.top_k.tolist() == [7, 7, 7]
    assert sampling.top_p.tolist() == [1.0] * 3
    assert sampling.seed.tolist() == [1, -(1 << 63), 3]
    dtypes = [column.dtype for column in vars(sampling).values()]
    assert dtypes == [torch.float32, torch.int32, torch.float32, torch.float32, torch.int64]


@pytest.mark.parametrize(
    "as_given",
    [list, tuple, np.array, torch.tensor, lambda numbers: [np.array(x) for x in numbers]],
)
def test_build_takes_numbers_of_any_kind(as_given: Callable[[Any], Any]) -> None:
    sampling = SamplingParams.build(
        2,
        temperature=as_given([0.25, 100.0]),
        top_k=as_given([7, 0]),
        top_p=as_given([0.5, 1.0]),
        min_p=as_given([0, 1]),
        seed=as_given([5, -(1 << 63)]),
    )
    values = [column.tolist() for column in vars(sampling).values()]
    assert values == [[0.25, 100.0], [7, 0], [0.5, 1.0], [0.0, 1.0], [5, -(1 << 63)]]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("temperature", np.float32(0.5), 0.5),
        ("temperature", np.int64(1), 1.0),
        ("temperature", Fraction(1, 3), 1 / 3),
        ("temperature", -0.0, 0.0),
        ("top_k", np.uint8(3), 3),
        ("top_k", np.array(4), 4),
        ("top_p", Fraction(1, 2), 0.5),
        ("top_p", np.float16(0.5), 0.5),
        ("top_p", 2.0**-126, 2.0**-126),
        ("min_p", 1e-46, 0.0),  # off, as it would be if float32 held it
        ("seed", torch.tensor(-3), -3),
    ],
)
def test_build_takes_one_number_of_any_kind(field: str, value: Any, expected: float) -> None:
    column = getattr(SamplingParams.build(2, **{field: value}), field)
    assert torch.equal(column, torch.tensor([expected] * 2, dtype=column.dtype))


def test_the_smallest_nucleus_holds_the_largest_logit() -> None:
    logits = torch.tensor([0.0, 3.0, 2.9])
    least = SamplingParams.build(1, top_p=2.0**-126).top_p
    assert cutoff(logits, 1.0, 0, float(least), 0.0) == 3.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_p": 1e-46}, "top_p: expected a number in (0, 1], 1.2e-38 at least, got 1e-46"),
        (
            {"top_p": [0.5, 1e-40]},
            "top_p: expected a number in (0, 1], 1.2e-38 at least, got 1e-40",
        ),
        ({"top_p": "0.5"}, "top_p: expected a number in (0, 1], 1.2e-38 at least, got '0.5'"),
        ({"top_p": 1 + 1e-9}, "top_p: expected a number in (0, 1]"),
        ({"top_p": None}, "top_p: expected a number in (0, 1], 1.2e-38 at least, got None"),
        ({"temperature": 1e-46}, "temperature: expected 0 or 0.01..100.0, got 1e-46"),
        ({"temperature": 10**400}, "temperature: expected 0 or 0.01..100.0, got 1000"),
        ({"temperature": 1j}, "temperature: expected 0 or 0.01..100.0, got 1j"),
        ({"temperature": Fraction(1, 200)}, "temperature: expected 0 or 0.01..100.0, got Fraction"),
        ({"temperature": "hot"}, "temperature: expected 0 or 0.01..100.0, got 'hot'"),
        ({"top_k": 2.5}, "top_k: expected 0 (off) or a positive count, got 2.5"),
        ({"top_k": np.float64(2.0)}, "top_k: expected 0 (off) or a positive count, got 2.0"),
        ({"top_k": [1, Fraction(5, 2)]}, "top_k: expected 0 (off) or a positive count, got Frac"),
        ({"top_k": np.array([1, 2, 3])}, "top_k: expected one value or 2, got 3"),
        ({"top_k": np.array([[1], [2]])}, "top_k: expected 0 (off) or a positive count, got [1]"),
        ({"top_k": 1 << 31}, "top_k: expected 0 (off) or a positive count, got 2147483648"),
        ({"min_p": float("nan")}, "min_p: expected a number in [0, 1], got nan"),
        ({"min_p": torch.tensor(2.0)}, "min_p: expected a number in [0, 1], got 2.0"),
        ({"seed": 1.0}, "seed: expected a signed 64-bit integer, got 1.0"),
        ({"seed": np.uint64((1 << 64) - 1)}, "seed: expected a signed 64-bit integer, got 1844"),
        ({"temperature": -1.0}, "temperature: expected 0 or 0.01..100.0, got -1.0"),
        ({"temperature": 1e-3}, "temperature: expected 0 or"),
        ({"temperature": float("nan")}, "temperature: expected 0 or"),
        ({"top_k": -1}, "top_k: expected 0"),
        ({"top_p": 0.0}, "top_p: expected"),
        ({"top_p": 1.5}, "top_p: expected"),
        ({"min_p": -0.1}, "min_p: expected"),
        ({"seed": 1 << 63}, "seed: expected"),
        ({"seed": [1, 2, 3]}, "seed: expected one value or 2, got 3"),
    ],
)
def test_errors_say_what_was_expected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SamplingParams.build(2, **values)
