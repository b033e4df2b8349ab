"""Device functions over a program's share of a row: every GROUP-th block, from block `rank` on.

A row is (row_ptr [vocab], bitmask_ptr [ceil(vocab / 32)] int32, vocab, rank). A block is loaded as
[BLOCK // WIDTH, WIDTH], the tokens of a noise counter side by side.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from wanspec_kernels.verify.noise_kernels import (
    LOG2_E,
    WIDTH,
    gumbel_bound,
    gumbel_groups,
    weight,
)

NO_TOKEN = tl.constexpr(0x7FFFFFFF)
# Blocks under way while one is worked on.
STAGES = tl.constexpr(3)
# Packed scores, see `pack`: of nothing, and of a row with NaN, +inf or only -inf.
NONE = tl.constexpr(-(1 << 63))
INVALID = tl.constexpr((1 << 63) - 1)
LOWEST = tl.constexpr(-3.4028234663852886e38)
KEY_OF_INFINITY = tl.constexpr(0x7F800000)
KEY_OF_MINUS_INFINITY = tl.constexpr(-0x7F800001)
# Relative error of a rough mass at most: a few times that of exponentials down to -40 and of
# float32 sums of a row.
ROUGH_ERROR = tl.constexpr(1e-5)


@triton.jit
def key_of(x):
    """int32 in the order of the float32 numbers; both zeros are one."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(key):
    """The float32 number of a key (int64), at least -inf."""
    bits = tl.maximum(key, KEY_OF_MINUS_INFINITY).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def pack(score, token):
    """int64 in the order of scores; of equal scores the lowest token is the largest."""
    return (key_of(score).to(tl.int64) << 32) | (token ^ NO_TOKEN).to(tl.int64)


@triton.jit
def score_of(packed):
    """-inf of NONE."""
    return value_of(packed >> 32)


@triton.jit
def is_number(packed):
    """Whether the score is finite, which that of NONE and of INVALID is not."""
    key = packed >> 32
    return (key > KEY_OF_MINUS_INFINITY) & (key < KEY_OF_INFINITY)


@triton.jit
def token_of(packed):
    """NO_TOKEN of NONE."""
    return (packed & 0x7FFFFFFF).to(tl.int32) ^ NO_TOKEN


@triton.jit
def largest_of(x):
    return tl.max(tl.max(x, axis=1))


@triton.jit
def load_logits(
    row,
    ids,
    inside,  # which ids to load; the others are -inf
    MASKED: tl.constexpr,
):
    """float32 logits, -inf where the bitmask forbids the token."""
    row_ptr, bitmask_ptr = row[0], row[1]
    x = tl.load(row_ptr + ids, mask=inside, other=-float("inf")).to(tl.float32)
    if MASKED:
        words = tl.load(bitmask_ptr + (ids >> 5), mask=inside, other=0)
        x = tl.where(((words >> (ids & 31)) & 1) != 0, x, -float("inf"))
    return x


@triton.jit
def load_groups(
    row,
    group,  # [G] int32: WIDTH tokens each; -1 is none
    MASKED: tl.constexpr,
):
    """[G, WIDTH] logits and their tokens."""
    ids = group[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    return load_logits(row, ids, (ids >= 0) & (ids < row[2]), MASKED), ids


@triton.jit
def load_block(row, start, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    return load_groups(row, tl.arange(0, BLOCK // WIDTH) + start // WIDTH, MASKED)[0]


@triton.jit
def row_maxima(
    row, N: tl.constexpr, GROUP: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr
):
    """[N] maxima, each over tokens of its own; +inf where there was NaN or +inf."""
    vocab, rank = row[2], row[3]
    maxima = tl.full([BLOCK // WIDTH, WIDTH], -float("inf"), tl.float32)
    for start in tl.range(rank * BLOCK, vocab, GROUP * BLOCK, num_stages=STAGES):
        x = load_block(row, start, MASKED, BLOCK)
        maxima = tl.maximum(maxima, x, propagate_nan=tl.PropagateNan.ALL)
    maxima = tl.where(maxima < float("inf"), maxima, float("inf"))
    return tl.max(tl.reshape(maxima, [N, BLOCK // N]), axis=1)


@triton.jit
def row_largest_and_mass(
    row,
    cutoff,
    inverse_temperature,
    GROUP: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest logit, +inf where there was NaN or +inf; roughly the mass from `cutoff` on, in
    units of its weight."""
    vocab, rank = row[2], row[3]
    maxima = tl.full([BLOCK // WIDTH, WIDTH], -float("inf"), tl.float32)
    units = tl.full([BLOCK // WIDTH], LOWEST, tl.float32)
    masses = tl.zeros([BLOCK // WIDTH], tl.float32)
    for start in tl.range(rank * BLOCK, vocab, GROUP * BLOCK, num_stages=STAGES):
        x = load_block(row, start, MASKED, BLOCK)
        maxima = tl.maximum(maxima, x, propagate_nan=tl.PropagateNan.ALL)
        x = tl.where((x >= cutoff) & (x < float("inf")), x, -float("inf"))
        largest = tl.maximum(units, tl.max(x, axis=1))
        weights = tl.exp2((x - largest[:, None]) * (inverse_temperature * LOG2_E))
        masses *= rough_weight(units - largest, inverse_temperature)
        masses += tl.sum(weights, axis=1)
        units = largest
    largest = largest_of(tl.where(maxima < float("inf"), maxima, float("inf")))
    return largest, total_mass(units, masses, inverse_temperature)


@triton.jit
def total_mass(
    units,  # [N] float32
    masses,  # [N] float32
    inverse_temperature,
):
    """The sum of [N] masses, each in units of a logit's weight, in units of the largest one's."""
    return tl.sum(masses * rough_weight(units - tl.max(units), inverse_temperature))


@triton.jit
def rough_weight(below, inverse_temperature):
    """A weight in units of the largest one's, for a logit so far below the largest."""
    # For what is LOWEST, the product would overflow.
    return tl.exp2(tl.maximum(below, -65.0 / inverse_temperature) * (inverse_temperature * LOG2_E))


@triton.jit
def row_largest(row, GROUP: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """The packed largest logit, INVALID where there was NaN or +inf."""
    vocab, rank = row[2], row[3]
    best = tl.full([BLOCK // WIDTH, WIDTH], -float("inf"), tl.float32)
    best_id = tl.full([BLOCK // WIDTH, WIDTH], NO_TOKEN, tl.int32)
    wrong = tl.full([BLOCK // WIDTH, WIDTH], -float("inf"), tl.float32)
    for start in tl.range(rank * BLOCK, vocab, GROUP * BLOCK, num_stages=STAGES):
        x, ids = load_groups(row, tl.arange(0, BLOCK // WIDTH) + start // WIDTH, MASKED)
        wrong = tl.maximum(wrong, x, propagate_nan=tl.PropagateNan.ALL)
        best_id = tl.where(x > best, ids, best_id)
        best = tl.where(x > best, x, best)
    packed = tl.where(best_id == NO_TOKEN, NONE, pack(best, best_id))
    return tl.where(any_invalid(wrong), INVALID, largest_of(packed))


@triton.jit
def any_invalid(maxima):
    return largest_of(tl.where(maxima < float("inf"), 0, 1)) > 0


@triton.jit
def count_from(row, least, GROUP: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """How many logits are at least `least`, int64."""
    vocab, rank = row[2], row[3]
    count = tl.zeros([BLOCK // WIDTH, WIDTH], tl.int32)
    for start in tl.range(rank * BLOCK, vocab, GROUP * BLOCK, num_stages=STAGES):
        x = load_block(row, start, MASKED, BLOCK)
        count += (x >= least).to(tl.int32)
    return tl.sum(tl.sum(count, axis=1)).to(tl.int64)


@triton.jit
def masses_from(
    row, cutoff, least, largest, inverse_temperature,
    GROUP: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Exact sums of weights, int64: of logits at least `cutoff`, and of those at least `least`."""
    vocab, rank = row[2], row[3]
    kept = tl.zeros([BLOCK // WIDTH, WIDTH], tl.int64)
    mass = tl.zeros([BLOCK // WIDTH, WIDTH], tl.int64)
    for start in tl.range(rank * BLOCK, vocab, GROUP * BLOCK, num_stages=STAGES):
        x = load_block(row, start, MASKED, BLOCK)
        w = weight((x - largest) * inverse_temperature)
        kept += tl.where(x >= cutoff, w, 0)
        mass += tl.where(x >= least, w, 0)
    return tl.sum(tl.sum(kept, axis=1)), tl.sum(tl.sum(mass, axis=1))


@triton.jit
def rough_masses_from(
    row, least_0, least_1, least_2, least_3, largest, inverse_temperature,
    GROUP: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rough sums of weights, float32, of logits at least as large as each; least_0 is the least."""
    vocab, rank = row[2], row[3]
    scale = inverse_temperature * LOG2_E
    mass_0 = tl.zeros([BLOCK // WIDTH], tl.float32)
    mass_1 = tl.zeros([BLOCK // WIDTH], tl.float32)
    mass_2 = tl.zeros([BLOCK // WIDTH], tl.float32)
    mass_3 = tl.zeros([BLOCK // WIDTH], tl.float32)
    for start in tl.range(rank * BLOCK, vocab, GROUP * BLOCK, num_stages=STAGES):
        x = load_block(row, start, MASKED, BLOCK)
        if largest_of(x) >= least_0:
            w = tl.exp2((x - largest) * scale)
            mass_0 += tl.sum(tl.where(x >= least_0, w, 0.0), axis=1)
            mass_1 += tl.sum(tl.where(x >= least_1, w, 0.0), axis=1)
            mass_2 += tl.sum(tl.where(x >= least_2, w, 0.0), axis=1)
            mass_3 += tl.sum(tl.where(x >= least_3, w, 0.0), axis=1)
    return tl.sum(mass_0), tl.sum(mass_1), tl.sum(mass_2), tl.sum(mass_3)


@triton.jit
def sample_row(
    row,
    cutoff,  # tokens below it may not be chosen
    scale,  # (shift, inverse temperature)
    noise_key,  # (position, seed)
    excluded,  # [E] int32, tokens that may not be chosen either; -1 is none
    STREAM: tl.constexpr,
    EXCLUDE: tl.constexpr,
    GROUP: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The packed best ``(logit - shift) / T + gumbel``; INVALID where there was NaN or +inf.

    A pass over bounds leaves each lane with its two best groups of tokens and the bound of its
    third. Only the best need their logarithms, unless a bound says that others could win.
    """
    vocab, rank = row[2], row[3]
    LANES: tl.constexpr = BLOCK // WIDTH
    maxima = tl.full([LANES, WIDTH], -float("inf"), tl.float32)
    first = tl.full([LANES], -float("inf"), tl.float32)
    second = tl.full([LANES], -float("inf"), tl.float32)
    third = tl.full([LANES], -float("inf"), tl.float32)
    first_choice = tl.full([LANES], -1, tl.int32)
    second_choice = tl.full([LANES], -1, tl.int32)
    for start in tl.range(rank * BLOCK, vocab, GROUP * BLOCK, num_stages=STAGES):
        group = tl.arange(0, LANES) + start // WIDTH
        x = load_block(row, start, MASKED, BLOCK)
        maxima = tl.maximum(maxima, x, propagate_nan=tl.PropagateNan.ALL)
        x = eligible(x, start, cutoff, excluded, EXCLUDE, BLOCK)
        bound = score_bound(x, group, scale, noise_key, STREAM)
        choice = choice_of(x, group, EXCLUDE)
        third = tl.maximum(third, tl.minimum(second, bound))
        runner_up = tl.where(bound > second, choice, second_choice)
        second_choice = tl.where(bound > first, first_choice, runner_up)
        second = tl.maximum(second, tl.minimum(first, bound))
        first_choice = tl.where(bound > first, choice, first_choice)
        first = tl.maximum(first, bound)
    best = best_score(row, first_choice, cutoff, scale, noise_key, STREAM, EXCLUDE, MASKED)
    if could_win(second, best):
        other = best_score(row, second_choice, cutoff, scale, noise_key, STREAM, EXCLUDE, MASKED)
        best = tl.maximum(best, other)
    if could_win(third, best):
        for start in tl.range(rank * BLOCK, vocab, GROUP * BLOCK):
            group = tl.arange(0, LANES) + start // WIDTH
            x = load_block(row, start, MASKED, BLOCK)
            x = eligible(x, start, cutoff, excluded, EXCLUDE, BLOCK)
            if could_win(score_bound(x, group, scale, noise_key, STREAM), best):
                choice = choice_of(x, group, EXCLUDE)
                other = best_score(row, choice, cutoff, scale, noise_key, STREAM, EXCLUDE, MASKED)
                best = tl.maximum(best, other)
    return tl.where(any_invalid(maxima), INVALID, best)


@triton.jit
def eligible(x, start, cutoff, excluded, EXCLUDE: tl.constexpr, BLOCK: tl.constexpr):
    """A block's logits, -inf where a token may not be chosen."""
    x = tl.where(x >= cutoff, x, -float("inf"))
    if EXCLUDE:
        near = (excluded >= start) & (excluded < start + BLOCK)
        if tl.max(near.to(tl.int32)) > 0:
            hits = tl.histogram(tl.where(near, excluded - start, 0), BLOCK, mask=near)
            x = tl.where(tl.reshape(hits, [BLOCK // WIDTH, WIDTH]) > 0, -float("inf"), x)
    return x


@triton.jit
def score_bound(x, group, scale, noise_key, STREAM: tl.constexpr):
    """[G] float32 that no score of a group's exceeds, as rounding is monotone; -inf of nothing."""
    shift, inverse_temperature = scale
    position, seed = noise_key
    largest = tl.max(x, axis=1)
    bound = (largest - shift) * inverse_temperature + gumbel_bound(group, position, seed, STREAM)
    # A score may have overflowed to -inf and still be the best there is.
    return tl.where(largest > -float("inf"), tl.maximum(bound, LOWEST), -float("inf"))


@triton.jit
def could_win(bound, best):
    most = tl.max(bound)
    # An equal score wins with a lower token.
    return (most >= score_of(best)) & (most > -float("inf"))


@triton.jit
def choice_of(x, group, EXCLUDE: tl.constexpr):
    """A group and, if some of its tokens may be excluded, a bit for each that is not."""
    choice = group
    if EXCLUDE:
        bit = 1 << tl.arange(0, WIDTH)[None, :]
        choice = (group << WIDTH) + tl.sum(tl.where(x > -float("inf"), bit, 0), axis=1)
    return choice


@triton.jit
def best_score(
    row,
    choice,  # [G] int32 of `choice_of`, -1 is none
    cutoff,
    scale,
    noise_key,
    STREAM: tl.constexpr,
    EXCLUDE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The packed best score of some groups."""
    shift, inverse_temperature = scale
    position, seed = noise_key
    group = choice
    if EXCLUDE:
        group = choice >> WIDTH
    x, ids = load_groups(row, group, MASKED)
    keep = (x >= cutoff) & (x > -float("inf"))
    if EXCLUDE:
        keep &= ((choice[:, None] >> tl.arange(0, WIDTH)[None, :]) & 1) != 0
    score = (x - shift) * inverse_temperature + gumbel_groups(group, position, seed, STREAM)
    return largest_of(tl.where(keep, pack(score, ids), NONE))
