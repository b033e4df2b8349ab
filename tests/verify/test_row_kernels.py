"""The kernels' search for a cutoff finds `sampling.cutoff` itself."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from wanspec_kernels.sampling import cutoff
from wanspec_kernels.verify.launches import EXACT
from wanspec_kernels.verify.row_kernels import row_bounds, row_cutoff


@triton.jit
def cutoff_kernel(
    out_ptr,  # [3] float32: largest, smallest, cutoff
    out_invalid_ptr,  # [1] int32
    row_ptr,  # [vocab]
    options_ptr,  # [3] float32: inverse temperature, top_p, min_p
    top_k_ptr,  # [1] int32
    vocab,
    BLOCK: tl.constexpr,
):
    largest, smallest, invalid = row_bounds(row_ptr, vocab, BLOCK)
    tl.store(out_ptr, largest)
    tl.store(out_ptr + 1, smallest)
    tl.store(out_invalid_ptr, invalid.to(tl.int32))
    if invalid == 0:
        found = row_cutoff(
            row_ptr, vocab, largest, smallest, tl.load(options_ptr), tl.load(top_k_ptr),
            tl.load(options_ptr + 1), tl.load(options_ptr + 2), BLOCK,
        )  # fmt: skip
        tl.store(out_ptr + 2, found)


def run(
    row: torch.Tensor,
    inverse_temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    block: int,
) -> tuple[list[float], bool]:
    out = torch.full((3,), torch.nan, device=row.device)
    invalid = torch.full((1,), -1, dtype=torch.int32, device=row.device)
    options = torch.tensor([inverse_temperature, top_p, min_p], device=row.device)
    k = torch.tensor([top_k], dtype=torch.int32, device=row.device)
    cutoff_kernel[(1,)](out, invalid, row, options, k, len(row), BLOCK=block, **EXACT)
    assert int(invalid) in (0, 1)
    return out.tolist(), bool(invalid)


@pytest.mark.parametrize("seed", range(10))
def test_cutoff_is_found_exactly(seed: int, device: str) -> None:
    rng = np.random.default_rng(seed)
    vocab = int(rng.choice([1, 3, 63, 300]))
    logits = torch.tensor(rng.normal(size=vocab) * 4, dtype=torch.float32)
    if seed % 2:
        logits = logits.round()  # ties, and zeros of both signs
        logits[logits == 0] *= torch.tensor(
            rng.choice([-1.0, 1.0], int((logits == 0).sum()))
        ).float()
    logits[torch.tensor(rng.random(vocab) < 0.15)] = -torch.inf
    logits[int(rng.integers(vocab))] = 1.25
    logits = logits.to(torch.bfloat16 if seed % 3 == 0 else torch.float32).to(device)
    arguments = (
        float(np.float32(rng.choice([0.3, 1.0, 2.0, 100.0]))),
        int(rng.choice([0, 1, 4, 200, vocab])),
        float(rng.choice([1.0, 0.9, 0.5, 1e-6])),
        float(rng.choice([0.0, 0.01, 0.3, 1.0])),
    )
    expected = cutoff(logits.float(), *arguments)
    for block in (64, 512) if seed < 2 else (512,):
        (largest, smallest, found), invalid = run(logits, *arguments, block)
        assert not invalid
        assert largest == float(logits.max())
        assert smallest == float(logits.min())
        assert found == expected


def test_min_p_is_a_share_of_the_largest(device: str) -> None:
    row = torch.tensor([0.31, 0.28, 1.0, 0.29], device=device).log()
    assert run(row, 1.0, 0, 1.0, 0.3, 16)[0][2] == float(row[0])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [0, 40, 99])
def test_invalid_rows(bad: float, at: int, device: str) -> None:
    row = torch.full((100,), -torch.inf if bad == -torch.inf else 1.0, device=device)
    row[at] = bad
    assert run(row, 1.0, 0, 1.0, 0.0, 64)[1]
