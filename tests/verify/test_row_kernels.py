"""The kernels' search for a cutoff keeps what `sampling.cutoff` keeps."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from wanspec_kernels.noise import weight
from wanspec_kernels.sampling import cutoff
from wanspec_kernels.verify.cutoff_kernels import find_cutoff, min_p_cutoff, row_cutoff
from wanspec_kernels.verify.launches import EXACT, KEY_SHIFTS
from wanspec_kernels.verify.row_kernels import masses_from, row_largest, row_maxima, score_of

CAPACITY = 64
MAX_TOP_K = 32


@triton.jit
def cutoff_kernel(
    out_ptr,  # [4] float32: largest, and cutoffs by candidates, by passes, of min_p
    out_candidates_ptr,  # [1] int32
    row_ptr,  # [vocab]
    options_ptr,  # [3] float32: inverse temperature, top_p, min_p
    top_k_ptr,  # [1] int32
    counter_ptr,  # [1] int32
    values_ptr,  # [CAPACITY] float32
    ids_ptr,  # [CAPACITY] int32
    vocab,
    MAX_TOP_K: tl.constexpr,
    CAPACITY: tl.constexpr,
    MAXIMA: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (row_ptr, row_ptr, vocab, 0)
    group = (counter_ptr, values_ptr, 0)
    candidates = (counter_ptr, values_ptr, ids_ptr)
    inverse_temperature = tl.load(options_ptr)
    top_p = tl.load(options_ptr + 1)
    min_p = tl.load(options_ptr + 2)
    top_k = tl.load(top_k_ptr)
    maxima = row_maxima(row, MAXIMA, 1, False, BLOCK)
    largest = tl.max(maxima)
    tl.store(out_ptr, largest)
    if (largest < float("inf")) & (largest > -float("inf")):
        total, _ = masses_from(
            row, -float("inf"), 0.0, largest, inverse_temperature, 1, False, BLOCK
        )
        found, num_candidates, _, _ = find_cutoff(
            row, maxima, largest, inverse_temperature, top_k, top_p, total, candidates, 0,
            group, 0, MAX_TOP_K, CAPACITY, MAXIMA, SHIFT, 1, False, BLOCK,
        )  # fmt: skip
        tl.store(out_ptr + 1, found)
        tl.store(out_candidates_ptr, num_candidates)
        found, _ = row_cutoff(
            row, largest, inverse_temperature, top_k, top_p, total, group, 0, SHIFT, 1, False, BLOCK
        )
        tl.store(out_ptr + 2, found)
        found = -float("inf")
        if min_p > 0.0:
            found = min_p_cutoff(largest, inverse_temperature, min_p)
        tl.store(out_ptr + 3, found)


def run(
    row: torch.Tensor,
    inverse_temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    block: int = 512,
) -> tuple[list[float], int]:
    device = row.device
    out = torch.full((4,), torch.nan, device=device)
    num_candidates = torch.full((1,), -7, dtype=torch.int32, device=device)
    options = torch.tensor([inverse_temperature, top_p, min_p], device=device)
    k, counter = (torch.tensor([n], dtype=torch.int32, device=device) for n in (top_k, 0))
    values = torch.full((CAPACITY,), torch.nan, device=device)
    cutoff_kernel[(1,)](
        out, num_candidates, row, options, k, counter, values, values.int(), len(row),
        MAX_TOP_K, CAPACITY, min(block, 256), KEY_SHIFTS[row.dtype], block, **EXACT,
    )  # fmt: skip
    return out.tolist(), int(num_candidates)


@pytest.mark.parametrize("seed", range(12))
def test_the_same_logits_are_kept(seed: int, device: str) -> None:
    rng = np.random.default_rng(seed)
    vocab = int(rng.choice([1, 3, 63, 300, 900]))
    logits = torch.tensor(rng.normal(size=vocab) * 4, dtype=torch.float32)
    if seed % 2:
        logits = logits.round()  # ties, and zeros of both signs
        logits[logits == 0] *= torch.tensor(
            rng.choice([-1.0, 1.0], int((logits == 0).sum()))
        ).float()
    logits[torch.tensor(rng.random(vocab) < 0.15)] = -torch.inf
    logits[int(rng.integers(vocab))] = 1.25
    logits = logits.to([torch.bfloat16, torch.float16, torch.float32][seed % 3]).to(device)
    inverse, top_k, top_p, min_p = (
        float(np.float32(rng.choice([0.3, 1.0, 2.0, 100.0]))),
        int(rng.choice([0, 1, 4, 30, 200, vocab])),
        float(rng.choice([1.0, 0.9, 0.5, 1e-6])),
        float(rng.choice([0.0, 0.01, 0.3, 1.0])),
    )
    row = logits.float()
    kept = row >= cutoff(row, inverse, top_k, top_p, min_p)
    for block in (64, 512) if seed < 2 else (512,):
        (largest, by_candidates, by_passes, by_min_p), _ = run(
            logits, inverse, top_k, top_p, min_p, block
        )
        assert largest == float(logits.max())
        filtered = top_k > 0 or top_p < 1
        for found in (by_candidates, by_passes) if filtered else (by_passes,):
            keeps = (row >= found) & (row >= by_min_p) & (row > -torch.inf)
            assert torch.equal(keeps, kept & (row > -torch.inf))


def test_candidates_decide_unless_there_are_too_many(device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    row = torch.randperm(500, generator=generator).float().to(device)
    ties = row.clamp(max=469) + (row - 470).clamp(min=0)
    ties[(row > 409) & (row < 470)] = 469.0
    flat = torch.zeros(500, device=device)
    for logits, options, decided in (
        (row, (1.0, MAX_TOP_K, 0.9, 0.0), True),
        (row, (1.0, MAX_TOP_K + 1, 0.9, 0.0), False),
        (ties, (1.0, 10, 1.0, 0.0), True),
        (ties, (1.0, 31, 1.0, 0.0), False),
        (row, (1.0, 0, 0.9, 0.0), True),
        (row, (0.01, 0, 0.9, 0.0), False),
        (flat, (1.0, 0, 0.9, 0.0), False),
    ):
        (_, found, *_), num_candidates = run(logits, *options)
        assert (num_candidates >= 0) == decided, options
        kept = logits >= cutoff(logits, *options)
        assert torch.equal(logits >= found, kept)
        assert num_candidates < 0 or num_candidates >= kept.sum()


def test_min_p_is_a_share_of_the_largest(device: str) -> None:
    row = torch.tensor([0.31, 0.28, 1.0, 0.29], device=device).log()
    found = run(row, 1.0, 0, 1.0, 0.3, 16)[0][3]
    assert row[1] < row[3] < found <= row[0]


def test_weights_are_monotone() -> None:
    """What finding min_p's cutoff without reading the row needs: at every step of the exponent."""
    steps = (torch.arange(-44, 1) - 0.5) / 1.44269502
    near = steps.view(torch.int32)[:, None] - torch.arange(-2000, 2000, dtype=torch.int32)
    assert (weight(near.view(torch.float32)).diff(dim=1) >= 0).all()


@triton.jit
def largest_kernel(out_ptr, row_ptr, vocab, BLOCK: tl.constexpr):
    packed = row_largest((row_ptr, row_ptr, vocab, 0), 1, False, BLOCK)
    tl.store(out_ptr, score_of(packed))
    tl.store(out_ptr + 1, (packed == (1 << 63) - 1).to(tl.float32))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [0, 40, 99])
def test_invalid_rows(bad: float, at: int, device: str) -> None:
    row = torch.full((100,), -torch.inf if bad == -torch.inf else 1.0, device=device)
    row[at] = bad
    assert run(row, 1.0, 0, 1.0, 0.0, 64)[0][0] == (bad if bad == -torch.inf else torch.inf)
    out = torch.full((2,), torch.nan, device=device)
    largest_kernel[(1,)](out, row, 100, BLOCK=64)
    assert out[1] == (bad != -torch.inf)
    assert out[1] == 1 or out[0] == -torch.inf
