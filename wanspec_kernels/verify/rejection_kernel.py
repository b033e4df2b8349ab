"""The rejection rule: one program walks one tree; the residual is held where a draft changes it.

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
    weight,
)
from wanspec_kernels.verify.row_kernels import (
    NO_TOKEN,
    largest_token,
    row_bounds,
    row_cutoff,
    sample_row,
)

UNIT = tl.constexpr(2.0**-WEIGHT_BITS)
# Below it a residual mass is no normal float32, and is taken for 0.
LEAST_MASS = tl.constexpr(1e-37)


@triton.jit
def verify_rejection_kernel(
    out_token_ids_ptr,  # [batch, max_depth + 1] int32
    out_num_accepted_ptr,  # [batch] int32
    out_accepted_nodes_ptr,  # [batch, max_depth] int32
    out_status_ptr,  # [batch] int32
    logits_ptr,  # [num_nodes, vocab], rows row_stride apart
    token_ids_ptr,  # [num_nodes] int32
    indptr_ptr,  # [batch + 1] int32
    draw_indptr_ptr,  # [num_nodes + 1] int32
    draw_children_ptr,  # [num_draws] int32
    draw_rows_ptr,  # [num_draws] int32
    draft_token_ids_ptr,  # [num_rows, support] int32, -1 = padding
    draft_weights_ptr,  # [num_rows, support] int32
    replacement_ptr,  # [num_rows] bool
    positions_ptr,  # [batch] int64
    inverse_temperature_ptr,  # [batch] float32, 0 = greedy
    top_k_ptr,  # [batch] int32
    top_p_ptr,  # [batch] float32
    min_p_ptr,  # [batch] float32
    seed_ptr,  # [batch] int64
    max_depth,
    vocab,
    row_stride,
    support,
    BLOCK: tl.constexpr,
    SUPPORT: tl.constexpr,  # power of two, support or more
    ENTRIES: tl.constexpr,  # power of two, support * the rows of any one node or more
):
    b = tl.program_id(0)
    start = tl.load(indptr_ptr + b)
    end = tl.load(indptr_ptr + b + 1)
    position = tl.load(positions_ptr + b)
    inverse_temperature = tl.load(inverse_temperature_ptr + b)
    top_k = tl.load(top_k_ptr + b)
    top_p = tl.load(top_p_ptr + b)
    min_p = tl.load(min_p_ptr + b)
    seed = tl.load(seed_ptr + b)
    filtered = (inverse_temperature > 0.0) & ((top_k > 0) | (top_p < 1.0) | (min_p > 0.0))
    token_ids_out = out_token_ids_ptr + b.to(tl.int64) * (max_depth + 1)
    accepted_nodes_out = out_accepted_nodes_ptr + b.to(tl.int64) * max_depth

    accepted = 0
    num_tokens = 0
    status = 0
    node = tl.where(end > start, 0, -1)
    while node >= 0:
        row_ptr = logits_ptr + (start + node).to(tl.int64) * row_stride
        largest, smallest, invalid = row_bounds(row_ptr, vocab, BLOCK)
        node_token = -1
        child = -1
        if invalid:
            status = 1
        else:
            cutoff = -float("inf")
            if filtered:
                cutoff = row_cutoff(
                    row_ptr,
                    vocab,
                    largest,
                    smallest,
                    inverse_temperature,
                    top_k,
                    top_p,
                    min_p,
                    BLOCK,
                )
            first_draw = tl.load(draw_indptr_ptr + start + node)
            last_draw = tl.load(draw_indptr_ptr + start + node + 1)
            num_entries = 0
            first_row = 0
            if last_draw > first_draw:
                first_row = tl.load(draw_rows_ptr + first_draw)
                num_entries = (tl.load(draw_rows_ptr + last_draw - 1) + 1 - first_row) * support
            entries_ptr = draft_token_ids_ptr + first_row.to(tl.int64) * support
            entries = load_entries(entries_ptr, num_entries, ENTRIES)
            residual, mass = target_masses(
                row_ptr, vocab, largest, inverse_temperature, cutoff, entries, BLOCK
            )
            child, residual = test_draws(
                residual, mass, entries, first_draw, last_draw, position + accepted, seed,
                token_ids_ptr + start, draw_children_ptr, draw_rows_ptr,
                draft_token_ids_ptr, draft_weights_ptr, replacement_ptr, support, SUPPORT,
            )  # fmt: skip
            if child >= 0:
                node_token = tl.load(token_ids_ptr + start + child)
            else:
                node_token = sample_residual(
                    row_ptr, vocab, largest, inverse_temperature, cutoff, residual, entries,
                    entries_ptr, num_entries, position + accepted, seed, BLOCK,
                )  # fmt: skip
        tl.store(token_ids_out + num_tokens, node_token)
        num_tokens += 1
        if child >= 0:
            tl.store(accepted_nodes_out + accepted, child)
            accepted += 1
        node = child

    for i in range(num_tokens, max_depth + 1):
        tl.store(token_ids_out + i, -1)
    for i in range(accepted, max_depth):
        tl.store(accepted_nodes_out + i, -1)
    tl.store(out_num_accepted_ptr + b, accepted)
    tl.store(out_status_ptr + b, status)


@triton.jit
def load_entries(entries_ptr, num_entries, ENTRIES: tl.constexpr):
    """[ENTRIES] tokens of the node's supports; -1 at padding and repetitions."""
    index = tl.arange(0, ENTRIES)
    tokens = tl.load(entries_ptr + index, mask=index < num_entries, other=-1)
    same = tokens[:, None] == tokens[None, :]
    first = tl.min(tl.where(same, index[None, :], ENTRIES), axis=1)
    return tl.where(first == index, tokens, -1)


@triton.jit
def target_masses(
    row_ptr,  # [vocab], a valid row
    vocab,
    largest,
    inverse_temperature,
    cutoff,
    entries,  # [ENTRIES] int32
    BLOCK: tl.constexpr,
):
    """The target's mass at each entry, [ENTRIES] float64, and over the whole row."""
    inside = (entries >= 0) & (entries < vocab)
    if inverse_temperature > 0.0:
        total = tl.zeros([BLOCK], tl.int64)
        for start in range(0, vocab, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            x = tl.load(row_ptr + ids, mask=ids < vocab, other=-float("inf")).to(tl.float32)
            total += tl.where(x >= cutoff, weight((x - largest) * inverse_temperature), 0)
        mass = tl.sum(total).to(tl.float64) * UNIT
        x = tl.load(row_ptr + entries, mask=inside, other=-float("inf")).to(tl.float32)
        masses = scaled_exp((x - largest) * inverse_temperature).to(tl.float64) * UNIT
        masses = tl.where((x >= cutoff) & (x > -float("inf")), masses, 0.0)
    else:
        masses = (entries == largest_token(row_ptr, vocab, BLOCK)).to(tl.float64)
        mass = tl.full([], 1.0, tl.float64)
    return masses, mass


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
def sample_residual(
    row_ptr,  # [vocab], a valid row
    vocab,
    largest,
    inverse_temperature,
    cutoff,
    residual,  # [ENTRIES] float64
    entries,  # [ENTRIES] int32
    entries_ptr,  # with its repetitions, [num_entries]
    num_entries,
    position,
    seed,
    BLOCK: tl.constexpr,
):
    """The recovered token, or the bonus token if nothing was rejected."""
    if inverse_temperature > 0.0:
        score, token = sample_row(
            row_ptr, vocab, largest, inverse_temperature, cutoff, position, seed,
            entries, entries_ptr, num_entries, RESIDUAL, True, BLOCK,
        )  # fmt: skip
        left = residual > LEAST_MASS
        logs = natural_log(tl.where(left, residual, 1.0).to(tl.float32))
        scores = logs + gumbel(tl.where(left, entries, 0), position, seed, RESIDUAL)
        scores = tl.where(left, scores, -float("inf"))
        entry_score = tl.max(scores)
        entry_token = tl.min(tl.where(left & (scores == entry_score), entries, NO_TOKEN))
        if (entry_score > score) | ((entry_score == score) & (entry_token < token)):
            token = entry_token
        if token == NO_TOKEN:
            # Rounding left nothing; any token of the target's will do.
            _, token = sample_row(
                row_ptr, vocab, largest, inverse_temperature, cutoff, position, seed,
                entries, entries_ptr, 0, RESIDUAL, False, BLOCK,
            )  # fmt: skip
    else:
        token = largest_token(row_ptr, vocab, BLOCK)
    return token
