"""Device functions of the rejection rule: the residual at one node, held where a draft changes it.

A draft changes the residual on its support only, so the union of a node's supports is all there is
to hold: elsewhere the residual stays the target's. Masses are in units of the row's largest weight.
The row's own may be known roughly, as a least and a most, and so then is the residual: they decide
nearly all that the exact one would.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from wanspec_kernels.verify.noise_kernels import (
    COIN,
    RESIDUAL,
    UNIT,
    gumbel,
    natural_log,
    scaled_exp,
    uniform,
)
from wanspec_kernels.verify.row_kernels import NONE, load_logits, pack, score_of, token_of

# Below it a residual mass is no normal float32, and is taken for 0.
LEAST_MASS = tl.constexpr(1e-37)
ALL_REJECTED = tl.constexpr(-1)
UNDECIDED = tl.constexpr(-2)
MARGIN = tl.constexpr(1e-4)  # of a score: a hundred times the rounding of a logarithm


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
    mass,  # (least, most), float64: of the residual over the whole row
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
    """The first accepted draw's child, ALL_REJECTED, or UNDECIDED if the mass is known too roughly.

    Also the least and the most that the residual can be after the rejections before it.
    """
    least_mass, most_mass = mass
    # For what is rounded otherwise than with the mass itself.
    slack = tl.where(least_mass != most_mass, 1e-12 * most_mass, 0.0)
    least = residual
    most = residual
    columns = tl.arange(0, SUPPORT)
    earlier = tl.zeros([SUPPORT], tl.int32)  # 1 at tokens drawn before, without replacement
    child = ALL_REJECTED
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
        here = entries == token
        coin = uniform(draw - first_draw, position, seed, COIN).to(tl.float64)
        threshold = coin * (token_weight / total)
        if threshold * most_mass < tl.sum(tl.where(here, least, 0.0)):
            child = candidate
            draw = last_draw
        elif threshold * least_mass < tl.sum(tl.where(here, most, 0.0)):
            child = UNDECIDED
            draw = last_draw
        else:
            same = entries[:, None] == tokens[None, :]
            entry_weights = tl.sum(tl.where(same, weights[None, :], 0), axis=1).to(tl.float64)
            share = tl.where(entries >= 0, entry_weights / total, 0.0)
            least_lost = tl.sum(least - tl.maximum(least - share * least_mass, 0.0))
            most_lost = tl.sum(most - tl.maximum(most - share * most_mass, 0.0))
            least = tl.maximum(least - share * most_mass, 0.0)
            most = tl.maximum(most - share * least_mass, 0.0)
            # Rounding alone can leave less than nothing.
            least_mass = tl.maximum(least_mass - most_lost - slack, 0.0)
            most_mass = tl.maximum(most_mass - least_lost + slack, 0.0)
            drawn = (tokens == token) & (tl.load(replacement_ptr + row) == 0)
            earlier = tl.where(drawn, 1, earlier)
            previous_row = row
            draw += 1
    return child, least, most


@triton.jit
def entry_scores(
    residual,  # [ENTRIES] float64
    entries,  # [ENTRIES] int32
    position,
    seed,
):
    """[ENTRIES] float32, -inf where nothing is left."""
    left = residual > LEAST_MASS
    logs = natural_log(tl.where(left, residual, 1.0).to(tl.float32))
    scores = logs + gumbel(tl.where(left, entries, 0), position, seed, RESIDUAL)
    return tl.where(left, scores, -float("inf"))


@triton.jit
def best_entry(residual, entries, position, seed):
    """The packed best score among the entries that something is left of."""
    scores = entry_scores(residual, entries, position, seed)
    return tl.max(tl.where(scores > -float("inf"), pack(scores, entries), NONE))


@triton.jit
def is_in_doubt(best, most, entries, position, seed):
    """Whether an entry but the best might do better, for all that is known of the residual."""
    scores = entry_scores(most, entries, position, seed)
    rivals = (entries != token_of(best)) & (scores + MARGIN >= score_of(best))
    return (best == NONE) | (tl.max(rivals.to(tl.int32)) > 0)
