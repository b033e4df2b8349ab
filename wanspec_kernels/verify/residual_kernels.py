"""Device functions of the rejection rule: the residual at one node, held where a draft changes it.

A draft changes the residual on its support only, so the union of a node's supports is all there is
to hold: elsewhere the residual stays the target's. Masses are in units of the row's largest weight.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from wanspec_kernels.noise import WEIGHT_BITS
from wanspec_kernels.verify.noise_kernels import (
    COIN,
    RESIDUAL,
    gumbel,
    natural_log,
    scaled_exp,
    uniform,
)
from wanspec_kernels.verify.row_kernels import NONE, load_logits, pack

UNIT = tl.constexpr(2.0**-WEIGHT_BITS)
# Below it a residual mass is no normal float32, and is taken for 0.
LEAST_MASS = tl.constexpr(1e-37)


@triton.jit
def load_entries(entries_ptr, num_entries, ENTRIES: tl.constexpr):
    """[ENTRIES] tokens of the node's supports; -1 at padding and repetitions."""
    index = tl.arange(0, ENTRIES)
    tokens = tl.load(entries_ptr + index, mask=index < num_entries, other=-1)
    repeated = tl.zeros([ENTRIES], tl.int32)
    for start in range(0, num_entries, 16):
        i = start + tl.arange(0, 16)
        others = tl.load(entries_ptr + i, mask=i < num_entries, other=-1)
        same = (tokens[:, None] == others[None, :]) & (i[None, :] < index[:, None])
        repeated |= tl.max(same.to(tl.int32), axis=1)
    return tl.where(repeated > 0, -1, tokens)


@triton.jit
def entry_masses(
    row,
    largest,
    inverse_temperature,
    cutoff,
    entries,  # [ENTRIES] int32
    MASKED: tl.constexpr,
):
    """The target's mass at each entry, [ENTRIES] float64."""
    x = load_logits(row, entries, (entries >= 0) & (entries < row[2]), MASKED)
    masses = scaled_exp((x - largest) * inverse_temperature).to(tl.float64) * UNIT
    return tl.where((x >= cutoff) & (x > -float("inf")), masses, 0.0)


@triton.jit
def test_draws(
    residual,  # [ENTRIES] float64
    mass,  # float64, of the residual over the whole row
    entries,  # [ENTRIES] int32
    first_draw,
    last_draw,
    position,
    seed,
    token_ids_ptr,  # of this tree
    draw_children_ptr,
    draw_rows_ptr,
    draft_token_ids_ptr,
    draft_weights_ptr,
    replacement_ptr,
    support,
    SUPPORT: tl.constexpr,
):
    """The first accepted draw's child or -1, and the residual after the rejections before it."""
    columns = tl.arange(0, SUPPORT)
    earlier = tl.zeros([SUPPORT], tl.int32)  # 1 at tokens drawn before, without replacement
    child = -1
    previous_row = -1
    draw = first_draw
    while draw < last_draw:
        row = tl.load(draw_rows_ptr + draw)
        candidate = tl.load(draw_children_ptr + draw)
        token = tl.load(token_ids_ptr + candidate)
        row_offset = row.to(tl.int64) * support
        tokens = tl.load(draft_token_ids_ptr + row_offset + columns, columns < support, other=-1)
        weights = tl.load(draft_weights_ptr + row_offset + columns, columns < support, other=0)
        earlier = tl.where(row == previous_row, earlier, 0)
        weights = tl.where((earlier > 0) | (tokens < 0), 0, weights)
        total = tl.maximum(tl.sum(weights), 1).to(tl.float64)
        token_weight = tl.sum(tl.where(tokens == token, weights, 0)).to(tl.float64)
        available = tl.sum(tl.where(entries == token, residual, 0.0))
        coin = uniform(draw - first_draw, position, seed, COIN).to(tl.float64)
        if coin * (token_weight / total) * mass < available:
            child = candidate
            draw = last_draw
        else:
            same = entries[:, None] == tokens[None, :]
            entry_weights = tl.sum(tl.where(same, weights[None, :], 0), axis=1).to(tl.float64)
            left = tl.maximum(residual - entry_weights / total * mass, 0.0)
            left = tl.where(entries >= 0, left, 0.0)
            # Rounding alone can leave less than nothing.
            mass = tl.maximum(mass - tl.sum(residual - left), 0.0)
            residual = left
            drawn = (tokens == token) & (tl.load(replacement_ptr + row) == 0)
            earlier = tl.where(drawn, 1, earlier)
            previous_row = row
            draw += 1
    return child, residual


@triton.jit
def best_entry(
    residual,  # [ENTRIES] float64
    entries,  # [ENTRIES] int32
    position,
    seed,
):
    """The packed best score among the entries that something is left of."""
    left = residual > LEAST_MASS
    logs = natural_log(tl.where(left, residual, 1.0).to(tl.float32))
    scores = logs + gumbel(tl.where(left, entries, 0), position, seed, RESIDUAL)
    return tl.max(tl.where(left, pack(scores, entries), NONE))
