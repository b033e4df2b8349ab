"""Device functions that find `sampling.cutoff`, bit for bit, of a row that a group shares.

Counts and masses are exact, and each filter's predicate is monotone over the ordered keys of the
logits; rough masses only rule keys out. The few largest logits are gathered first; only what they
cannot decide needs passes over the row. A key is shifted right by SHIFT, the low bits that a dtype
never uses.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from wanspec_kernels.verify.group_kernels import group_sum, group_sum_pair, meet
from wanspec_kernels.verify.noise_kernels import UNIT, WIDTH, gumbel, weight
from wanspec_kernels.verify.row_kernels import (
    KEY_OF_MINUS_INFINITY,
    NONE,
    ROUGH_ERROR,
    STAGES,
    count_from,
    key_of,
    largest_of,
    load_groups,
    masses_from,
    pack,
    rough_masses_from,
    value_of,
)


@triton.jit
def value_above(key, SHIFT: tl.constexpr):
    """The least float32 number above a shifted key (int64)."""
    return value_of((key + 1) << SHIFT)


@triton.jit
def rank_threshold(
    maxima,  # [N] float32, each over tokens of its own
    largest,
    k,
    N: tl.constexpr,
):
    """A value that at least k logits reach, or -inf: about the k-th of the maxima."""
    # Keys of 16 bits: a lower threshold gathers a few more.
    low = tl.full([], KEY_OF_MINUS_INFINITY >> 16, tl.int32)
    if k <= N:
        low = tl.maximum(low, key_of(tl.min(maxima)) >> 16)
    high = key_of(largest) >> 16
    while low < high:
        middle = (low + high + 1) >> 1
        reached = tl.sum((maxima >= value_of(middle.to(tl.int64) << 16)).to(tl.int32)) >= k
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle - 1)
    return value_of(low.to(tl.int64) << 16)


@triton.jit
def gather_candidates(
    row,
    threshold,
    candidates,  # (count_ptr, values_ptr [CAPACITY] float32, ids_ptr [CAPACITY] int32)
    counted,  # what the count was before
    counter_ptr,
    epoch,
    CAPACITY: tl.constexpr,
    GROUP: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Lists the row's logits from the threshold on, in any order; returns the new count."""
    vocab, rank = row[2], row[3]
    count_ptr, values_ptr, ids_ptr = candidates
    for start in tl.range(rank * BLOCK, vocab, GROUP * BLOCK, num_stages=STAGES):
        x, ids = load_groups(row, tl.arange(0, BLOCK // WIDTH) + start // WIDTH, MASKED)
        keep = (x >= threshold) & (x > -float("inf"))
        if largest_of(x) >= threshold:
            one = tl.full([BLOCK // WIDTH, WIDTH], 1, tl.int32)
            count_ptrs = count_ptr + tl.zeros([BLOCK // WIDTH, WIDTH], tl.int32)
            slot = tl.atomic_add(count_ptrs, one, mask=keep, sem="relaxed") - counted
            keep &= (slot >= 0) & (slot < CAPACITY)
            tl.store(values_ptr + slot, x, mask=keep)
            tl.store(ids_ptr + slot, ids, mask=keep)
    epoch = meet(counter_ptr, epoch, GROUP)
    return tl.load(count_ptr, cache_modifier=".cg"), epoch


@triton.jit
def load_candidates(candidates, num_candidates, CAPACITY: tl.constexpr):
    """[CAPACITY] logits and tokens, -inf and -1 past the last."""
    values_ptr, ids_ptr = candidates[1], candidates[2]
    index = tl.arange(0, CAPACITY)
    inside = index < num_candidates
    values = tl.load(values_ptr + index, inside, other=-float("inf"), cache_modifier=".cg")
    return values, tl.load(ids_ptr + index, inside, other=-1, cache_modifier=".cg")


@triton.jit
def sample_candidates(
    candidates,
    num_candidates,
    cutoff,
    scale,  # (shift, inverse temperature)
    noise_key,  # (position, seed)
    excluded_ptr,  # [num_excluded] int32, tokens that may not be chosen
    num_excluded,
    STREAM: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    """`row_kernels.sample_row` of a row whose candidates hold all that is kept."""
    shift, inverse_temperature = scale
    position, seed = noise_key
    values, ids = load_candidates(candidates, num_candidates, CAPACITY)
    keep = (ids >= 0) & (values >= cutoff)
    for first in range(0, num_excluded, 16):
        i = first + tl.arange(0, 16)
        excluded = tl.load(excluded_ptr + i, mask=i < num_excluded, other=-1)
        keep &= tl.sum((ids[:, None] == excluded[None, :]).to(tl.int32), axis=1) == 0
    noise = gumbel(tl.where(keep, ids, 0), position, seed, STREAM)
    score = (values - shift) * inverse_temperature + noise
    return tl.max(tl.where(keep, pack(score, ids), NONE))


@triton.jit
def candidates_cutoff(
    values,  # [CAPACITY] float32, every logit of the row that is at least the threshold
    threshold,
    largest,
    inverse_temperature,
    top_k,
    top_p,
    total,  # int64 mass of the row, read if top_k is off
    SHIFT: tl.constexpr,
):
    """The cutoff of top_k and top_p, and whether the candidates decide it."""
    low = (key_of(threshold) >> SHIFT).to(tl.int64)
    high = (key_of(largest) >> SHIFT).to(tl.int64)
    decided = True
    if top_k > 0:
        upper = high
        while low < upper:
            middle = (low + upper) >> 1
            count = tl.sum((values >= value_above(middle, SHIFT)).to(tl.int32))
            upper = tl.where(count < top_k, middle, upper)
            low = tl.where(count < top_k, low, middle + 1)
    if top_p < 1.0:
        weights = weight((values - largest) * inverse_temperature)
        mass = tl.sum(tl.where(values >= value_of(low << SHIFT), weights, 0))
        if top_k > 0:
            total = mass
        nucleus = top_p.to(tl.float64) * total.to(tl.float64)
        decided = (top_k > 0) | (mass.to(tl.float64) >= nucleus)
        upper = high
        while low < upper:
            middle = (low + upper) >> 1
            mass = tl.sum(tl.where(values >= value_above(middle, SHIFT), weights, 0))
            fills = mass.to(tl.float64) >= nucleus
            upper = tl.where(fills, upper, middle)
            low = tl.where(fills, middle + 1, low)
    return value_of(low << SHIFT), decided


@triton.jit
def find_cutoff(
    row,
    maxima,  # [GROUP * MAXIMA] float32 of the whole row
    largest,
    inverse_temperature,
    top_k,
    top_p,
    total,  # int64 mass of the row, read if top_k is off
    candidates,
    counted,
    group,
    epoch,
    MAX_TOP_K: tl.constexpr,
    CAPACITY: tl.constexpr,
    MAXIMA: tl.constexpr,
    SHIFT: tl.constexpr,
    GROUP: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The cutoff of top_k and top_p, one of which is on.

    Also how many candidates there are if they hold all that is kept, else -1.
    """
    cutoff = tl.full([], -float("inf"), tl.float32)
    num_candidates = tl.full([], -1, tl.int32)
    k = tl.where(top_k > 0, top_k, MAX_TOP_K)
    if k <= MAX_TOP_K:
        threshold = rank_threshold(maxima, largest, k, GROUP * MAXIMA)
        count, epoch = gather_candidates(
            row, threshold, candidates, counted, group[0], epoch, CAPACITY, GROUP, MASKED, BLOCK
        )
        listed = count - counted
        counted = count
        if (listed >= 0) & (listed <= CAPACITY):
            values = load_candidates(candidates, listed, CAPACITY)[0]
            cutoff, decided = candidates_cutoff(
                values, threshold, largest, inverse_temperature, top_k, top_p, total, SHIFT
            )
            num_candidates = tl.where(decided, listed, -1)
    if num_candidates < 0:
        cutoff, epoch = row_cutoff(
            row, largest, inverse_temperature, top_k, top_p, total, group, epoch,
            SHIFT, GROUP, MASKED, BLOCK,
        )  # fmt: skip
    return cutoff, num_candidates, counted, epoch


@triton.jit
def row_cutoff(
    row,
    largest,
    inverse_temperature,
    top_k,
    top_p,
    total,  # int64 mass of the row, read if top_k is off
    group,
    epoch,
    SHIFT: tl.constexpr,
    GROUP: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The cutoff of top_k and top_p by passes over the row, whatever the row."""
    low = tl.full([], KEY_OF_MINUS_INFINITY >> SHIFT, tl.int64)
    high = (key_of(largest) >> SHIFT).to(tl.int64)
    if top_k > 0:
        upper = high
        while low < upper:
            middle = (low + upper) >> 1
            count = count_from(row, value_above(middle, SHIFT), GROUP, MASKED, BLOCK)
            count, epoch = group_sum(count, group, epoch, GROUP)
            upper = tl.where(count < top_k, middle, upper)
            low = tl.where(count < top_k, low, middle + 1)
    if top_p < 1.0:
        if top_k > 0:
            total, epoch = mass_from(
                row, value_of(low << SHIFT), largest, inverse_temperature, group, epoch,
                GROUP, MASKED, BLOCK,
            )  # fmt: skip
        low, high, epoch = narrow_nucleus(
            row, low, high, top_p, total, largest, inverse_temperature, group, epoch,
            SHIFT, GROUP, MASKED, BLOCK,
        )  # fmt: skip
        nucleus = top_p.to(tl.float64) * total.to(tl.float64)
        while low < high:
            middle = (low + high) >> 1
            mass, epoch = mass_from(
                row, value_above(middle, SHIFT), largest, inverse_temperature, group, epoch,
                GROUP, MASKED, BLOCK,
            )  # fmt: skip
            fills = mass.to(tl.float64) >= nucleus
            high = tl.where(fills, high, middle)
            low = tl.where(fills, middle + 1, low)
    return value_of(low << SHIFT), epoch


@triton.jit
def mass_from(
    row, least, largest, inverse_temperature, group, epoch,
    GROUP: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The exact mass of the whole row's logits that are at least `least`, int64."""
    mass = masses_from(row, least, least, largest, inverse_temperature, GROUP, MASKED, BLOCK)[0]
    return group_sum(mass, group, epoch, GROUP)


@triton.jit
def narrow_nucleus(
    row,
    low,  # shifted keys, int64, between which is the least that top_p keeps
    high,
    top_p,
    total,  # int64, exact mass of what top_p is a share of
    largest,
    inverse_temperature,
    group,
    epoch,
    SHIFT: tl.constexpr,
    GROUP: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Brings the keys together as far as rough masses tell, those above four logits a pass."""
    p = top_p.to(tl.float64)
    whole = total.to(tl.float64) * UNIT
    units = (2.0**30 / whole).to(tl.float32)
    # From so far below the largest logit, a whole vocabulary would weigh half of what the nucleus
    # leaves; a little lower, as it is rounded.
    share = (0.5 * (1.0 - p) * whole / row[2]).to(tl.float32)
    outside = largest + tl.minimum(tl.log(share), 0.0) / inverse_temperature
    outside -= tl.abs(outside) * 1e-6
    low = tl.minimum(tl.maximum(low, key_of(outside).to(tl.int64) >> SHIFT), high)
    by_value = True
    narrowed = True
    while narrowed & (low < high):
        # Logits are spread over values rather than keys, but steps by value alone need not end.
        key_0 = probe(low, high, 1, low, by_value, SHIFT)
        key_1 = probe(low, high, 2, key_0, by_value, SHIFT)
        key_2 = probe(low, high, 3, key_1, by_value, SHIFT)
        key_3 = probe(low, high, 4, key_2, by_value, SHIFT)
        mass_0, mass_1, mass_2, mass_3 = rough_masses_from(
            row, value_above(key_0, SHIFT), value_above(key_1, SHIFT), value_above(key_2, SHIFT),
            value_above(key_3, SHIFT), largest, inverse_temperature, GROUP, MASKED, BLOCK,
        )  # fmt: skip
        first = ((mass_0 * units).to(tl.int64) << 32) + (mass_1 * units).to(tl.int64)
        second = ((mass_2 * units).to(tl.int64) << 32) + (mass_3 * units).to(tl.int64)
        first, second, epoch = group_sum_pair(first, second, group, epoch, GROUP)
        before = high - low
        low, high = judge(low, high, key_0, first >> 32, p)
        low, high = judge(low, high, key_1, first & 0xFFFFFFFF, p)
        low, high = judge(low, high, key_2, second >> 32, p)
        low, high = judge(low, high, key_3, second & 0xFFFFFFFF, p)
        narrowed = high - low < before
        by_value = by_value == 0
    return low, high, epoch


@triton.jit
def probe(low, high, i: tl.constexpr, least, by_value, SHIFT: tl.constexpr):
    """A shifted key i fifths of the way from low to high."""
    value = value_of(low << SHIFT) * (1.0 - i / 5) + value_of(high << SHIFT) * (i / 5)
    key = tl.where(by_value, key_of(value).to(tl.int64) >> SHIFT, low + (high - low) * i // 5)
    return tl.minimum(tl.maximum(key, least), high - 1)


@triton.jit
def judge(low, high, key, mass, p):
    """Narrower, if the mass above `key`, in units of 2**-30 of the whole, tells."""
    above = mass.to(tl.float64) * 2.0**-30
    low = tl.where(above - 4 * ROUGH_ERROR > p, tl.maximum(low, key + 1), low)
    return low, tl.where(above + 4 * ROUGH_ERROR < p, tl.minimum(high, key), high)


@triton.jit
def min_p_cutoff(largest, inverse_temperature, min_p):
    """The least float32 number that min_p keeps: `weight` is monotone, so no row is read."""
    floor = min_p.to(tl.float64) * weight(largest - largest).to(tl.float64)
    no_weight = -65.0 / inverse_temperature
    low = tl.full([], KEY_OF_MINUS_INFINITY, tl.int64)
    for digit in tl.static_range(4):
        points = low + ((tl.arange(0, 256) + 1).to(tl.int64) << (24 - 8 * digit))
        inside = points < key_of(largest).to(tl.int64)
        values = value_of(tl.where(inside, points, KEY_OF_MINUS_INFINITY))
        weights = weight(tl.maximum(values - largest, no_weight) * inverse_temperature)
        dropped = inside & (weights.to(tl.float64) < floor)
        low += tl.sum(dropped.to(tl.int64)) << (24 - 8 * digit)
    return value_of(low + 1)
