"""Device functions over one row of logits: its bounds, its filters' cutoff, its sample."""

# mypy: ignore-errors

import triton
import triton.language as tl

from wanspec_kernels.verify.noise_kernels import gumbel_block, weight

NO_TOKEN = tl.constexpr(0x7FFFFFFF)


@triton.jit
def row_bounds(
    row_ptr,  # [vocab]
    vocab,
    BLOCK: tl.constexpr,
):
    """Largest and smallest logit, and whether the row is invalid (NaN, +inf or only -inf)."""
    largest = tl.full([BLOCK], -float("inf"), tl.float32)
    smallest = tl.full([BLOCK], float("inf"), tl.float32)
    wrong = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocab, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        inside = ids < vocab
        x = tl.load(row_ptr + ids, mask=inside, other=-float("inf")).to(tl.float32)
        bad = (x != x) | (x == float("inf"))
        wrong |= bad.to(tl.int32)
        x = tl.where(bad, -float("inf"), x)
        largest = tl.maximum(largest, x)
        smallest = tl.minimum(smallest, tl.where(inside, x, float("inf")))
    top = tl.max(largest)
    return top, tl.min(smallest), (tl.max(wrong) > 0) | (top == -float("inf"))


@triton.jit
def row_cutoff(
    row_ptr,  # [vocab], a valid row
    vocab,
    largest,
    smallest,
    inverse_temperature,
    top_k,
    top_p,
    min_p,
    BLOCK: tl.constexpr,
):
    """`sampling.cutoff`, bit for bit: the smallest logit whose betters do not fill a filter.

    Each predicate is monotone over the ordered keys of the logits, and counts and masses are exact.
    """
    low = key_of(smallest).to(tl.int64)
    high = key_of(largest).to(tl.int64)
    if top_k > 0:
        upper = high
        while low < upper:
            middle = (low + upper) >> 1
            if count_above(row_ptr, vocab, middle, BLOCK) < top_k:
                upper = middle
            else:
                low = middle + 1
    if top_p < 1.0:
        total = mass_above(row_ptr, vocab, largest, inverse_temperature, low - 1, BLOCK)
        nucleus = top_p.to(tl.float64) * total.to(tl.float64)
        upper = high
        while low < upper:
            middle = (low + upper) >> 1
            mass = mass_above(row_ptr, vocab, largest, inverse_temperature, middle, BLOCK)
            if mass.to(tl.float64) < nucleus:
                upper = middle
            else:
                low = middle + 1
    cutoff = value_of(low)
    if min_p > 0.0:
        floor = min_p.to(tl.float64) * weight(largest - largest).to(tl.float64)
        least = tl.full([BLOCK], float("inf"), tl.float32)
        for start in range(0, vocab, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            x = tl.load(row_ptr + ids, mask=ids < vocab, other=-float("inf")).to(tl.float32)
            w = weight((x - largest) * inverse_temperature)
            keep = (x >= cutoff) & (w.to(tl.float64) >= floor)
            least = tl.minimum(least, tl.where(keep, x, float("inf")))
        cutoff = tl.min(least)
    return cutoff


@triton.jit
def count_above(row_ptr, vocab, key, BLOCK: tl.constexpr):
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocab, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + ids, mask=ids < vocab, other=-float("inf")).to(tl.float32)
        count += ((key_of(x) > key) & (ids < vocab)).to(tl.int32)
    return tl.sum(count)


@triton.jit
def mass_above(row_ptr, vocab, largest, inverse_temperature, key, BLOCK: tl.constexpr):
    """Exact sum of the weights above a key, int64."""
    mass = tl.zeros([BLOCK], tl.int64)
    for start in range(0, vocab, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + ids, mask=ids < vocab, other=-float("inf")).to(tl.float32)
        w = weight((x - largest) * inverse_temperature)
        mass += tl.where(key_of(x) > key, w, 0)
    return tl.sum(mass)


@triton.jit
def key_of(x):
    """int32 in the order of the float32 numbers; both zeros are one."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(key):
    """The float32 number of a key (int64)."""
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def largest_token(row_ptr, vocab, BLOCK: tl.constexpr):
    """The token of the largest logit of a valid row, the lowest among equals."""
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    best_id = tl.full([BLOCK], NO_TOKEN, tl.int32)
    for start in range(0, vocab, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + ids, mask=ids < vocab, other=-float("inf")).to(tl.float32)
        best_id = tl.where(x > best, ids, best_id)
        best = tl.maximum(best, x)
    return tl.min(tl.where(best == tl.max(best), best_id, NO_TOKEN))


@triton.jit
def sample_row(
    row_ptr,  # [vocab], a valid row
    vocab,
    shift,
    inverse_temperature,
    cutoff,
    position,
    seed,
    excluded,  # [E] int32, tokens that may not be chosen; -1 is none
    excluded_ptr,  # the same in memory, [num_excluded]
    num_excluded,
    STREAM: tl.constexpr,
    EXCLUDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Best ``(logit - shift) / T + gumbel`` and its lowest token; NO_TOKEN if none may be."""
    best = tl.full([BLOCK], -float("inf"), tl.float32)
    best_id = tl.full([BLOCK], NO_TOKEN, tl.int32)
    for start in range(0, vocab, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + ids, mask=ids < vocab, other=-float("inf")).to(tl.float32)
        keep = (x >= cutoff) & (x > -float("inf"))
        if EXCLUDE:
            near = (excluded >= start) & (excluded < start + BLOCK)
            if tl.max(near.to(tl.int32)) > 0:
                for i in range(0, num_excluded):
                    keep &= ids != tl.load(excluded_ptr + i)
        score = (x - shift) * inverse_temperature
        score += gumbel_block(start, position, seed, STREAM, BLOCK)
        # A score may have overflowed to -inf and still be the best there is.
        better = keep & ((score > best) | (best_id == NO_TOKEN))
        best = tl.where(better, score, best)
        best_id = tl.where(better, ids, best_id)
    top = tl.max(best)
    return top, tl.min(tl.where(best == top, best_id, NO_TOKEN))
