"""Triton twin of `wanspec_kernels.noise`: the same bits.

Launch with ``enable_fp_fusion=False``.
"""

# mypy: ignore-errors

import math

import triton
import triton.language as tl

from wanspec_kernels import noise

ROUNDS = tl.constexpr(noise.ROUNDS)
REFINE_BELOW = tl.constexpr(noise.REFINE_BELOW)
MULTIPLIER_0, MULTIPLIER_1 = map(tl.constexpr, noise.MULTIPLIERS)
INCREMENT_0, INCREMENT_1 = map(tl.constexpr, noise.KEY_INCREMENTS)
LN_0, LN_1, LN_2, LN_3, LN_4, LN_5, LN_6, LN_7 = map(tl.constexpr, noise.LN_COEFFICIENTS)
GUMBEL_0, GUMBEL_1, GUMBEL_2, GUMBEL_3, GUMBEL_4, GUMBEL_5, GUMBEL_6, GUMBEL_7 = map(
    tl.constexpr, noise.GUMBEL_COEFFICIENTS
)
EXP_0, EXP_1, EXP_2, EXP_3, EXP_4 = map(tl.constexpr, noise.EXP_COEFFICIENTS)
LN2_HIGH = tl.constexpr(noise.LN2_HIGH)
LN2_LOW = tl.constexpr(noise.LN2_LOW)
LOG2_E = tl.constexpr(noise.LOG2_E)
SQRT_HALF_BITS = tl.constexpr(noise.SQRT_HALF_BITS)
EXPONENT_BIAS = tl.constexpr(127 + noise.WEIGHT_BITS)
UNIT = tl.constexpr(2.0**-noise.WEIGHT_BITS)  # of a weight
WIDTH = tl.constexpr(8)  # tokens of a group, which share a counter
WORD = tl.constexpr(2.0**-32)
LARGEST_UNIFORM = tl.constexpr(1 - 2.0**-24)
# The margin covers every rounding, here (1e-5) and in the noise itself (1e-5).
BOUND_AT_0 = tl.constexpr((32 + 127) * math.log(2) + 1e-3)
BOUND_PER_BIT = tl.constexpr(-math.log(2) * 2.0**-23)
TOKEN = tl.constexpr(int(noise.Stream.TOKEN))
COIN = tl.constexpr(int(noise.Stream.COIN))
RESIDUAL = tl.constexpr(int(noise.Stream.RESIDUAL))


@triton.jit
def philox4(
    counter,  # uint32, any shape
    position,  # int64 scalar
    seed,  # int64 scalar
    STREAM: tl.constexpr,
):
    """Philox4x32-7: four words, uint32 of the counter's shape."""
    zero = counter ^ counter
    c0 = counter
    c1 = zero + position.to(tl.uint32)
    c2 = zero + (position >> 32).to(tl.uint32)
    c3 = zero + STREAM
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(ROUNDS):
        high_0 = tl.umulhi(c0, zero + MULTIPLIER_0)
        high_1 = tl.umulhi(c2, zero + MULTIPLIER_1)
        low_0 = c0 * MULTIPLIER_0
        low_1 = c2 * MULTIPLIER_1
        c0 = high_1 ^ c1 ^ k0
        c1 = low_1
        c2 = high_0 ^ c3 ^ k1
        c3 = low_0
        k0 += INCREMENT_0
        k1 += INCREMENT_1
    return c0, c1, c2, c3


@triton.jit
def half(token, position, seed, STREAM: tl.constexpr):
    """A half of a word for each token (int32, any shape): the stream's own, or the next one's."""
    w0, w1, w2, w3 = philox4((token >> 3).to(tl.uint32), position, seed, STREAM)
    pair = (token >> 1) & 3
    both = tl.where(pair < 2, tl.where(pair == 0, w0, w1), tl.where(pair == 2, w2, w3))
    return (both >> ((token & 1) * 16).to(tl.uint32)) & 0xFFFF


@triton.jit
def words(token, position, seed, STREAM: tl.constexpr):
    """A word for each token (int32, any shape)."""
    upper = half(token, position, seed, STREAM)
    return (upper << 16) | half(token, position, seed, STREAM + 1)


@triton.jit
def half_groups(group, position, seed, STREAM: tl.constexpr):
    """[G, WIDTH] halves of the groups' tokens, for [G] groups."""
    w0, w1, w2, w3 = philox4(group.to(tl.uint32), position, seed, STREAM)
    four = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [group.shape[0], 4])
    return tl.reshape(tl.join(four & 0xFFFF, four >> 16), [group.shape[0], WIDTH])


@triton.jit
def word_groups(group, position, seed, STREAM: tl.constexpr):
    """[G, WIDTH] words of the groups' tokens, for [G] groups."""
    upper = half_groups(group, position, seed, STREAM)
    return (upper << 16) | half_groups(group, position, seed, STREAM + 1)


@triton.jit
def gumbel(token, position, seed, STREAM: tl.constexpr):
    """Noise of each token (int32, any shape)."""
    word = words(token, position, seed, STREAM)
    lower = coarse_uniform(word)
    if tl.min(word) < REFINE_BELOW:
        lower = refine(word, lower, words(token, position, seed, STREAM + 2))
    return gumbel_of(word, lower)


@triton.jit
def gumbel_groups(group, position, seed, STREAM: tl.constexpr):
    """[G, WIDTH] noise of the groups' tokens, for [G] groups."""
    word = word_groups(group, position, seed, STREAM)
    lower = coarse_uniform(word)
    if tl.min(tl.min(word, axis=1)) < REFINE_BELOW:
        lower = refine(word, lower, word_groups(group, position, seed, STREAM + 2))
    return gumbel_of(word, lower)


@triton.jit
def gumbel_bound(group, position, seed, STREAM: tl.constexpr):
    """[G] float32 that the noise of the groups' tokens does not exceed, from upper halves alone."""
    w0, w1, w2, w3 = philox4(group.to(tl.uint32), position, seed, STREAM)
    high = (tl.minimum(tl.minimum(w0, w1), tl.minimum(w2, w3)) >> 16) << 16
    low = tl.minimum(tl.minimum(w0 << 16, w1 << 16), tl.minimum(w2 << 16, w3 << 16))
    return bound_of(tl.minimum(high, low))


@triton.jit
def bound_of(word):
    """What the noise of this word, and so of any larger one, does not exceed.

    Noise is at most -ln(word / 2**32), and log2 of a float is at least the number that its bits
    are, read as exponent and fraction. A word of 0 gives 110, more than any refined word can.
    """
    bits = word.to(tl.float32).to(tl.int32, bitcast=True)
    return bits.to(tl.float32) * BOUND_PER_BIT + BOUND_AT_0


@triton.jit
def uniform(token, position, seed, STREAM: tl.constexpr):
    """Uniform float32 of each token, never 0 and never 1."""
    word = words(token, position, seed, STREAM)
    lower = refine(word, coarse_uniform(word), words(token, position, seed, STREAM + 2))
    return tl.minimum(lower, LARGEST_UNIFORM)


@triton.jit
def coarse_uniform(word):
    return (word.to(tl.float32) + 0.5) * WORD


@triton.jit
def refine(word, lower, fine):
    refined = (word.to(tl.float32) + (fine.to(tl.float32) + 0.5) * WORD) * WORD
    return tl.where(word < REFINE_BELOW, refined, lower)


@triton.jit
def gumbel_of(word, lower):
    # ~word, as word counted down from the largest
    upper = ((word ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * WORD
    p = lower * GUMBEL_7 + GUMBEL_6
    p = p * lower + GUMBEL_5
    p = p * lower + GUMBEL_4
    p = p * lower + GUMBEL_3
    p = p * lower + GUMBEL_2
    p = p * lower + GUMBEL_1
    p = p * lower + GUMBEL_0
    near_zero = natural_log(lower) + lower * p
    near_one = natural_log(-natural_log(upper))
    return -tl.where(word < 0x80000000, near_zero, near_one)


@triton.jit
def natural_log(x):
    """ln(x) of normal positive float32 numbers."""
    bits = x.to(tl.int32, bitcast=True) - SQRT_HALF_BITS
    exponent = (bits >> 23).to(tl.float32)
    f = ((bits & 0x7FFFFF) + SQRT_HALF_BITS).to(tl.float32, bitcast=True) - 1.0
    p = f * LN_7 + LN_6
    p = p * f + LN_5
    p = p * f + LN_4
    p = p * f + LN_3
    p = p * f + LN_2
    p = p * f + LN_1
    p = p * f + LN_0
    return exponent * LN2_HIGH + (exponent * LN2_LOW + (f + (f * f) * p))


@triton.jit
def scaled_exp(x):
    """exp(x) * 2**WEIGHT_BITS for x <= 0, float32; `noise.weight` before it is rounded down."""
    x = tl.maximum(x, -64.0)
    n = tl.floor(x * LOG2_E + 0.5)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = r * EXP_4 + EXP_3
    p = p * r + EXP_2
    p = p * r + EXP_1
    p = p * r + EXP_0
    mantissa = 1.0 + (r + (r * r) * p)
    scale = ((n.to(tl.int32) + EXPONENT_BIAS) << 23).to(tl.float32, bitcast=True)
    return mantissa * scale


@triton.jit
def weight(x):
    """`noise.weight`: int64."""
    return scaled_exp(x).to(tl.int64)
