"""The Triton noise is the torch noise, bit for bit."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from wanspec_kernels import noise
from wanspec_kernels.noise import Stream
from wanspec_kernels.verify import noise_kernels
from wanspec_kernels.verify.launches import EXACT
from wanspec_kernels.verify.noise_kernels import WIDTH

SIZE = 1024
KEYS = [(0, 0), (77, 1 << 40), ((1 << 33) + 5, -1), ((1 << 62) + 3, -(1 << 63) + 12345)]


@triton.jit
def draw_kernel(
    out_gumbel_ptr,  # [2, SIZE] float32, of single tokens and of groups
    out_bound_ptr,  # [SIZE // WIDTH] float32
    out_uniform_ptr,  # [SIZE] float32
    start,
    position_ptr,  # [1] int64
    seed_ptr,  # [1] int64
    SIZE: tl.constexpr,
    STREAM: tl.constexpr,
):
    index = tl.arange(0, SIZE)
    position = tl.load(position_ptr)
    seed = tl.load(seed_ptr)
    single = noise_kernels.gumbel(start + index, position, seed, STREAM)
    tl.store(out_gumbel_ptr + index, single)
    group = start // WIDTH + tl.arange(0, SIZE // WIDTH)
    noise = noise_kernels.gumbel_groups(group, position, seed, STREAM)
    tokens = tl.arange(0, SIZE // WIDTH)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(out_gumbel_ptr + SIZE + tokens, noise)
    bound = noise_kernels.gumbel_bound(group, position, seed, STREAM)
    tl.store(out_bound_ptr + tl.arange(0, SIZE // WIDTH), bound)
    tl.store(out_uniform_ptr + index, noise_kernels.uniform(start + index, position, seed, STREAM))


@triton.jit
def words_kernel(
    out_ptr,  # [3, SIZE] float32
    word_ptr,  # [SIZE] int64
    fine_ptr,  # [SIZE] int64
    x_ptr,  # [SIZE] float32
    out_weight_ptr,  # [SIZE] int64
    SIZE: tl.constexpr,
):
    index = tl.arange(0, SIZE)
    word = tl.load(word_ptr + index).to(tl.uint32)
    fine = tl.load(fine_ptr + index).to(tl.uint32)
    lower = noise_kernels.refine(word, noise_kernels.coarse_uniform(word), fine)
    tl.store(out_ptr + index, lower)
    tl.store(out_ptr + SIZE + index, noise_kernels.gumbel_of(word, lower))
    tl.store(out_ptr + 2 * SIZE + index, noise_kernels.bound_of(word))
    tl.store(out_weight_ptr + index, noise_kernels.weight(tl.load(x_ptr + index)))


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int32)


@pytest.mark.parametrize(("position", "seed"), KEYS)
@pytest.mark.parametrize("stream", [Stream.TOKEN, Stream.COIN])
def test_same_bits(position: int, seed: int, stream: Stream, device: str) -> None:
    position_on, seed_on = (torch.tensor([x], device=device) for x in (position, seed))
    # A block that holds a word to be refined, and one that does not.
    words = noise.words(torch.arange(1 << 18, device=device), position_on, seed_on, stream)
    refined = (words < noise.REFINE_BELOW).view(-1, SIZE).any(1)
    for start in (int(refined.nonzero()[0]) * SIZE, int((~refined).nonzero()[0]) * SIZE):
        gumbel = torch.full((2, SIZE), torch.nan, device=device)
        bound = torch.full((SIZE // 8,), torch.nan, device=device)
        uniform = torch.full((SIZE,), torch.nan, device=device)
        draw_kernel[(1,)](
            gumbel, bound, uniform, start, position_on, seed_on,
            SIZE=SIZE, STREAM=int(stream), **EXACT,
        )  # fmt: skip
        tokens = torch.arange(start, start + SIZE, device=device)
        expected = noise.gumbel(tokens, position_on, seed_on, stream)
        assert torch.equal(bits(gumbel), bits(expected).expand(2, SIZE))
        excess = bound - expected.view(-1, 8).amax(1)
        assert (excess > 0).all()
        assert excess.median() < 0.5, "a loose bound rules nothing out"
        expected = noise.uniform(tokens, position_on, seed_on, stream)
        assert torch.equal(bits(uniform), bits(expected))


def test_same_bits_from_the_same_words(device: str) -> None:
    """Every interval's edges, refined words, bounds, and weights down to nothing."""
    generator = torch.Generator().manual_seed(0)
    word = torch.randint(0, 1 << 32, (SIZE,), generator=generator)
    word[:300] = torch.randint(0, 1 << 16, (300,), generator=generator)
    edges = [0, 1, 65535, 65536, 65537, (1 << 31) - 1, 1 << 31, (1 << 32) - 2, (1 << 32) - 1]
    word[: len(edges)] = torch.tensor(edges)
    fine = torch.randint(0, 1 << 32, (SIZE,), generator=generator)
    fine[:2] = torch.tensor([0, (1 << 32) - 1])
    x = -70 * torch.rand(SIZE, generator=generator) ** 3
    x[:4] = torch.tensor([0.0, -0.0, -1e30, -torch.inf])
    word, fine, x = word.to(device), fine.to(device), x.to(device)
    out = torch.full((3, SIZE), torch.nan, device=device)
    weights = torch.full((SIZE,), -1, device=device)
    words_kernel[(1,)](out, word, fine, x, weights, SIZE=SIZE, **EXACT)
    lower = noise._lower(word, lambda: fine)
    assert torch.equal(bits(out[0]), bits(lower))
    assert torch.equal(bits(out[1]), bits(noise._gumbel(word, lower)))
    assert (out[2] > out[1]).all()
    order = word.argsort()
    assert (out[2][order].diff() <= 0).all()
    assert torch.equal(weights, noise.weight(x))
