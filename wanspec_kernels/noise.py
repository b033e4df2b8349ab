"""Counter-based noise: the same bits for the same (seed, position, token) on every device.

The word behind a token has two halves, of one half each of the words of Philox4x32-7 (Salmon et al.
2011; seven rounds pass BigCrush) with

    key     = (seed low 32 bits, seed high 32 bits)
    counter = (token // 8, position low 32 bits, position high 32 bits, stream)

where token % 8 chooses one of the eight 16-bit halves, the low half of a word first. The stream
itself gives the upper half, the next stream the lower one. The upper half alone bounds a token's
noise so well that a kernel needs the lower one of a few tokens only: one Philox for eight tokens.

A word below 2**16 is refined by a second word, of the two streams after, so that a uniform can come
as near to 0 as 2**-65 and a token of probability 1e-9 keeps its right share of draws; other tokens
never pay for it.

Everything after the integer words is float32 with one rounding an operation, from polynomials given
here: torch, Triton and CUDA then agree to the last bit, provided that no multiply is fused with an
add (Triton: ``enable_fp_fusion=False``; CUDA: ``__fmul_rn`` and ``__fadd_rn``).
"""

from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor

ROUNDS = 7
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
REFINE_BELOW = 1 << 16

# ln(1 + f) = f + f*f*P(f) for sqrt(1/2) <= 1 + f < sqrt(2); absolute error 5e-8.
LN_COEFFICIENTS = (
    -0.49999994, 0.333336592, -0.250016093, 0.199731052,
    -0.165750474, 0.148064598, -0.142577946, 0.0900420249,
)  # fmt: skip
# ln(-ln(1 - v)) = ln(v) + v*P(v) for 0 < v <= 1/2; absolute error 7e-8.
GUMBEL_COEFFICIENTS = (
    0.49999997, 0.208343267, 0.124600366, 0.0931975767,
    0.0219477788, 0.220975861, -0.290558934, 0.327658623,
)  # fmt: skip
# exp(r) = 1 + (r + r*r*P(r)) for |r| <= ln(2)/2; relative error 8e-8.
EXP_COEFFICIENTS = (0.5, 0.166665763, 0.041666463, 0.00836319756, 0.00139336765)
# ln(2) in two float32 parts; the first times a small integer is exact.
LN2_HIGH = 0.693359375
LN2_LOW = -0.000212194442
LOG2_E = 1.44269502
SQRT_HALF_BITS = 0x3F3504F3
# `weight` is a fixed-point number with this many fraction bits; sums of it are exact in int64 for
# vocabularies below 2**22, so no order of summation changes a result.
WEIGHT_BITS = 40

_MASK = 0xFFFFFFFF


class Stream(IntEnum):
    """What a word is for. Each owns four streams: two for the word, two for its refinement."""

    TOKEN = 0
    """Gumbel noise of the vocabulary; under `match` the drafter may know it."""
    COIN = 4
    """Acceptance coins of `rejection`: never known to a drafter."""
    RESIDUAL = 8
    """Gumbel noise of the token drawn after the last rejection."""


def philox4(
    counter: Tensor, position: Tensor, seed: Tensor, stream: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-7 of the counter, four words as int64 in [0, 2**32)."""
    counter, position, seed = torch.broadcast_tensors(counter.long(), position.long(), seed.long())
    c0, c1, c2 = counter, position & _MASK, (position >> 32) & _MASK
    c3 = torch.full_like(c0, stream)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(ROUNDS):
        # The product wraps as a signed number; its 64 bits are right all the same.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, ((p0 >> 32) & _MASK) ^ c3 ^ k1
        c1, c3 = p1 & _MASK, p0 & _MASK
        k0, k1 = (k0 + KEY_INCREMENTS[0]) & _MASK, (k1 + KEY_INCREMENTS[1]) & _MASK
    return c0, c1, c2, c3


def words(token: Tensor, position: Tensor, seed: Tensor, stream: int) -> Tensor:
    """The 32-bit word of each token, as int64 in [0, 2**32).

    `token`, `position` and `seed` are integer tensors of one broadcast shape; the result has that
    shape.
    """

    def half(of: int) -> Tensor:
        c0, c1, c2, c3 = philox4(token >> 3, position, seed, of)
        pair = (token >> 1) & 3
        word = torch.where(pair < 2, torch.where(pair == 0, c0, c1), torch.where(pair == 2, c2, c3))
        return (word >> 16 * (token & 1)) & 0xFFFF

    return half(stream) << 16 | half(stream + 1)


def row_words(vocab: int, position: Tensor, seed: Tensor, stream: int) -> Tensor:
    """`words` of tokens 0 .. vocab - 1 at each position, [..., vocab], in a quarter of the time."""
    counter = torch.arange((vocab + 7) // 8, device=position.device)

    def halves(of: int) -> Tensor:
        four = torch.stack(philox4(counter, position[..., None], seed[..., None], of), dim=-1)
        return torch.stack((four & 0xFFFF, four >> 16), dim=-1).flatten(-3)[..., :vocab]

    return halves(stream) << 16 | halves(stream + 1)


def uniform(token: Tensor, position: Tensor, seed: Tensor, stream: Stream) -> Tensor:
    """Uniform float32, never 0 and never above 1 - 2**-24; as fine as 2**-65 towards 0."""
    word = words(token, position, seed, stream)
    return _lower(word, lambda: words(token, position, seed, stream + 2)).clamp(max=1 - 2.0**-24)


def gumbel(token: Tensor, position: Tensor, seed: Tensor, stream: Stream = Stream.TOKEN) -> Tensor:
    """Standard Gumbel noise, float32, of the broadcast shape of the three integer tensors.

    ``argmax(logit / T + gumbel)`` draws from ``softmax(logit / T)`` (Gumbel 1954; Maddison et al.
    2014).
    """
    word = words(token, position, seed, stream)
    return _gumbel(word, _lower(word, lambda: words(token, position, seed, stream + 2)))


def gumbel_row(vocab: int, position: Tensor, seed: Tensor, stream: Stream = Stream.TOKEN) -> Tensor:
    """`gumbel` of tokens 0 .. vocab - 1 at each position, [..., vocab]: a quarter of the work."""
    word = row_words(vocab, position, seed, stream)
    return _gumbel(word, _lower(word, lambda: row_words(vocab, position, seed, stream + 2)))


def _lower(word: Tensor, fine: Callable[[], Tensor]) -> Tensor:
    """The uniform of each word, float32 in (0, 1]; `fine` gives the words that refine it."""
    lower = word.float() + 0.5
    # A CPU looks before it computes the second words; a GPU would have to wait for the answer.
    if word.device.type != "cpu" or bool((word < REFINE_BELOW).any()):
        refined = word.float() + (fine().float() + 0.5) * 2.0**-32
        lower = torch.where(word < REFINE_BELOW, refined, lower)
    return lower * 2.0**-32


def _gumbel(word: Tensor, lower: Tensor) -> Tensor:
    upper = ((_MASK - word).float() + 0.5) * 2.0**-32
    near_zero = natural_log(lower) + lower * _polynomial(GUMBEL_COEFFICIENTS, lower)
    near_one = natural_log(-natural_log(upper))
    return -torch.where(word < 1 << 31, near_zero, near_one)


def natural_log(x: Tensor) -> Tensor:
    """ln(x) of normal positive float32 numbers."""
    bits = x.view(torch.int32) - SQRT_HALF_BITS
    exponent = (bits >> 23).float()
    f = ((bits & 0x7FFFFF) + SQRT_HALF_BITS).view(torch.float32) - 1.0
    log1p = f + (f * f) * _polynomial(LN_COEFFICIENTS, f)
    return exponent * LN2_HIGH + (exponent * LN2_LOW + log1p)


def weight(x: Tensor) -> Tensor:
    """exp(x) for x <= 0 as a fixed-point int64 with `WEIGHT_BITS` fraction bits, rounded down."""
    n = torch.floor(x.clamp(min=-64.0) * LOG2_E + 0.5)
    r = (x.clamp(min=-64.0) - n * LN2_HIGH) - n * LN2_LOW
    mantissa = 1.0 + (r + (r * r) * _polynomial(EXP_COEFFICIENTS, r))
    scale = ((n.to(torch.int32) + (127 + WEIGHT_BITS)) << 23).view(torch.float32)
    return (mantissa * scale).to(torch.int64)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    result = torch.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = result * x + coefficient
    return result
