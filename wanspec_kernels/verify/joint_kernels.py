"""`block` and `traversal` on a GPU: all rows' statistics in parallel, then one program a tree.

A draft changes the residual at a node on its support only. Masses are those of `noise.weight`, so a
row's sum is exact, and what lies outside the supports is a difference of integers.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from wanspec_kernels.verify.noise_kernels import (
    COIN,
    RESIDUAL,
    gumbel,
    natural_log,
    uniform,
    weight,
)
from wanspec_kernels.verify.residual_kernels import LEAST_MASS, UNIT
from wanspec_kernels.verify.row_kernels import (
    KEY_OF_MINUS_INFINITY,
    NO_TOKEN,
    key_of,
    load_logits,
    value_of,
)

INVALID = tl.constexpr(-1)  # instead of a row's largest token


@triton.jit
def load_row(row_ptr, bitmask_ptr, ids, vocab, MASKED: tl.constexpr):
    return load_logits((row_ptr, bitmask_ptr), ids, (ids >= 0) & (ids < vocab), MASKED)


@triton.jit
def above(
    row_ptr, bitmask_ptr, vocab, value, largest, inverse_temperature,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many logits lie above a value, and their exact mass; int64."""
    count = tl.zeros([BLOCK], tl.int64)
    mass = tl.zeros([BLOCK], tl.int64)
    for start in range(0, vocab, BLOCK):
        x = load_row(row_ptr, bitmask_ptr, start + tl.arange(0, BLOCK), vocab, MASKED)
        more = x > value
        count += more.to(tl.int64)
        x = tl.where(more, x, largest)
        mass += tl.where(more, weight((x - largest) * inverse_temperature), 0)
    return tl.sum(count), tl.sum(mass)


@triton.jit
def just_below(value):
    return value_of(key_of(value).to(tl.int64) - 1)


@triton.jit
def row_statistics_kernel(
    out_largest_ptr,  # [num_nodes] float32
    out_best_ptr,  # [num_nodes] int32, the lowest of the largest tokens, or INVALID
    out_cutoff_ptr,  # [num_nodes] float32
    out_mass_ptr,  # [num_nodes] int64, of what the filters keep
    logits_ptr,  # [num_nodes, vocab], rows row_stride apart
    bitmask_ptr,  # [num_nodes, bitmask_stride] int32; anything unless MASKED
    trees_ptr,  # [num_nodes] int64, the tree of each row; batch at padding
    temperature_ptr,  # [batch] float32, 0 = greedy
    top_k_ptr,  # [batch] int32
    top_p_ptr,  # [batch] float32
    min_p_ptr,  # [batch] float32
    batch,
    vocab,
    row_stride,
    bitmask_stride,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    node = tl.program_id(0).to(tl.int64)
    b = tl.load(trees_ptr + node)
    if b < batch:
        row_ptr = logits_ptr + node * row_stride
        row_mask_ptr = bitmask_ptr + node * bitmask_stride
        temperature = tl.load(temperature_ptr + b)
        greedy = temperature == 0.0
        inverse = tl.where(greedy, 0.0, tl.div_rn(1.0, tl.where(greedy, 1.0, temperature)))
        top_k = tl.load(top_k_ptr + b).to(tl.int64)
        top_p = tl.load(top_p_ptr + b)
        min_p = tl.load(min_p_ptr + b)

        best = tl.full([BLOCK], -float("inf"), tl.float32)
        best_id = tl.full([BLOCK], NO_TOKEN, tl.int32)
        wrong = tl.zeros([BLOCK], tl.int32)
        for start in range(0, vocab, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            x = load_row(row_ptr, row_mask_ptr, ids, vocab, MASKED)
            wrong |= ((x != x) | (x == float("inf"))).to(tl.int32)
            best_id = tl.where(x > best, ids, best_id)
            best = tl.where(x > best, x, best)
        largest = tl.max(best)
        token = tl.min(tl.where(best == largest, best_id, NO_TOKEN))
        token = tl.where((tl.max(wrong) > 0) | (largest == -float("inf")), INVALID, token)

        cutoff = tl.full([], -float("inf"), tl.float32)
        mass = tl.full([], 0, tl.int64)
        if (token != INVALID) & (inverse > 0.0):
            high_key = key_of(largest).to(tl.int64)
            if top_k > 0:
                low = tl.full([], KEY_OF_MINUS_INFINITY, tl.int64)
                high = high_key
                while low < high:
                    middle = (low + high) >> 1
                    count, _ = above(
                        row_ptr, row_mask_ptr, vocab, value_of(middle), largest, inverse,
                        MASKED, BLOCK,
                    )  # fmt: skip
                    fits = count < top_k
                    high = tl.where(fits, middle, high)
                    low = tl.where(fits, low, middle + 1)
                cutoff = value_of(low)
            kept = cutoff
            if top_p < 1.0:
                _, total = above(
                    row_ptr, row_mask_ptr, vocab, just_below(kept), largest, inverse,
                    MASKED, BLOCK,
                )  # fmt: skip
                nucleus = top_p.to(tl.float64) * total.to(tl.float64)
                low = key_of(kept).to(tl.int64)
                high = high_key
                while low < high:
                    middle = (low + high) >> 1
                    _, more = above(
                        row_ptr, row_mask_ptr, vocab, value_of(middle), largest, inverse,
                        MASKED, BLOCK,
                    )  # fmt: skip
                    fits = more.to(tl.float64) < nucleus
                    high = tl.where(fits, middle, high)
                    low = tl.where(fits, low, middle + 1)
                cutoff = value_of(low)
            if min_p > 0.0:
                floor = min_p.to(tl.float64) * weight(largest - largest).to(tl.float64)
                low = key_of(cutoff).to(tl.int64)
                high = high_key
                while low < high:
                    middle = (low + high) >> 1
                    share = weight((value_of(middle) - largest) * inverse).to(tl.float64)
                    high = tl.where(share >= floor, middle, high)
                    low = tl.where(share >= floor, low, middle + 1)
                cutoff = value_of(low)
            _, mass = above(
                row_ptr, row_mask_ptr, vocab, just_below(cutoff), largest, inverse, MASKED, BLOCK
            )  # fmt: skip
        # So that an invalid row's differences are numbers too.
        tl.store(out_largest_ptr + node, tl.where(token == INVALID, 0.0, largest))
        tl.store(out_best_ptr + node, token)
        tl.store(out_cutoff_ptr + node, cutoff)
        tl.store(out_mass_ptr + node, mass)


@triton.jit
def node_entries(
    node,  # row of the batch
    draw_indptr_ptr, draw_rows_ptr, draft_token_ids_ptr, support,
    ENTRIES: tl.constexpr,
):  # fmt: skip
    """[ENTRIES] tokens of the node's supports, -1 at padding and repetitions; where they lie."""
    first = tl.load(draw_indptr_ptr + node)
    last = tl.load(draw_indptr_ptr + node + 1)
    first_row = tl.full([], 0, tl.int32)
    count = tl.full([], 0, tl.int32)
    if last > first:
        first_row = tl.load(draw_rows_ptr + first)
        count = (tl.load(draw_rows_ptr + last - 1) + 1 - first_row) * support
    entries_ptr = draft_token_ids_ptr + first_row.to(tl.int64) * support
    index = tl.arange(0, ENTRIES)
    tokens = tl.load(entries_ptr + index, mask=index < count, other=-1)
    repeated = tl.zeros([ENTRIES], tl.int32)
    for i in range(0, count):
        other = tl.load(entries_ptr + i)
        repeated |= ((tokens == other) & (i < index)).to(tl.int32)
    return tl.where(repeated > 0, -1, tokens), entries_ptr, count


@triton.jit
def draw_shares(
    draw, first_draw, tree_tokens_ptr,
    draw_children_ptr, draw_rows_ptr, draft_token_ids_ptr, draft_weights_ptr, replacement_ptr,
    support,
    SUPPORT: tl.constexpr,
):  # fmt: skip
    """[SUPPORT] tokens and float64 probabilities of what a draw was drawn from."""
    row = tl.load(draw_rows_ptr + draw)
    columns = tl.arange(0, SUPPORT)
    at = row.to(tl.int64) * support + columns
    tokens = tl.load(draft_token_ids_ptr + at, mask=columns < support, other=-1)
    weights = tl.load(draft_weights_ptr + at, mask=columns < support, other=0)
    weights = tl.where(tokens < 0, 0, weights)
    if tl.load(replacement_ptr + row) == 0:
        for earlier in range(first_draw, draw):
            if tl.load(draw_rows_ptr + earlier) == row:
                gone = tl.load(tree_tokens_ptr + tl.load(draw_children_ptr + earlier))
                weights = tl.where(tokens == gone, 0, weights)
    total = tl.maximum(tl.sum(weights.to(tl.int64)), 1)
    return tokens, weights.to(tl.float64) / total.to(tl.float64)


@triton.jit
def verify_joint_kernel(
    out_token_ids_ptr,  # [batch, max_depth + 1] int32
    out_num_accepted_ptr,  # [batch] int32
    out_accepted_nodes_ptr,  # [batch, max_depth] int32
    out_status_ptr,  # [batch] int32
    logits_ptr,  # [num_nodes, vocab], rows row_stride apart
    bitmask_ptr,  # [num_nodes, bitmask_stride] int32; anything unless MASKED
    token_ids_ptr,  # [num_nodes] int32
    parents_ptr,  # [num_nodes] int32
    indptr_ptr,  # [batch + 1] int32
    draw_indptr_ptr,  # [num_nodes + 1] int32
    draw_children_ptr,  # [num_draws] int32
    draw_rows_ptr,  # [num_draws] int32
    draft_token_ids_ptr,  # [num_rows, support] int32, -1 = padding
    draft_weights_ptr,  # [num_rows, support] int32
    replacement_ptr,  # [num_rows] bool
    positions_ptr,  # [batch] int64
    temperature_ptr,  # [batch] float32, 0 = greedy
    seed_ptr,  # [batch] int64
    largest_ptr, best_ptr, cutoff_ptr, mass_ptr,  # of `row_statistics_kernel`
    acceptance_ptr,  # [num_nodes] float64, scratch as the three below
    outside_ptr,  # [num_nodes] float64, the residual's mass outside the supports
    residual_ptr,  # [num_nodes, ENTRIES] float64, its masses on them
    cursor_ptr,  # [num_nodes] int32, the draw to be tested next
    max_depth,
    vocab,
    row_stride,
    bitmask_stride,
    support,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    SUPPORT: tl.constexpr,  # power of two, support or more
    ENTRIES: tl.constexpr,  # power of two, support * the rows of any one node or more
):  # fmt: skip
    b = tl.program_id(0)
    start = tl.load(indptr_ptr + b).to(tl.int64)
    end = tl.load(indptr_ptr + b + 1).to(tl.int64)
    position = tl.load(positions_ptr + b)
    temperature = tl.load(temperature_ptr + b)
    greedy = temperature == 0.0
    inverse = tl.where(greedy, 0.0, tl.div_rn(1.0, tl.where(greedy, 1.0, temperature)))
    seed = tl.load(seed_ptr + b)
    token_ids_out = out_token_ids_ptr + b.to(tl.int64) * (max_depth + 1)
    accepted_nodes_out = out_accepted_nodes_ptr + b.to(tl.int64) * max_depth
    index = tl.arange(0, ENTRIES)

    node = tl.where(end > start, start, -1)  # rows of the batch, here and below
    entering = tl.full([], 1, tl.int32)
    acceptance = tl.full([], 1.0, tl.float64)  # of the node that is entered
    accepted = tl.full([], -1, tl.int64)
    depth = tl.full([], 0, tl.int32)
    while node >= 0:
        best = tl.load(best_ptr + node)
        first = tl.load(draw_indptr_ptr + node)
        last = tl.load(draw_indptr_ptr + node + 1)
        entries, _, _ = node_entries(
            node, draw_indptr_ptr, draw_rows_ptr, draft_token_ids_ptr, support, ENTRIES
        )  # fmt: skip
        # The target's own masses, in units of the largest weight.
        x = load_row(
            logits_ptr + node * row_stride, bitmask_ptr + node * bitmask_stride, entries, vocab,
            MASKED,
        )  # fmt: skip
        largest = tl.load(largest_ptr + node)
        kept = (x >= tl.load(cutoff_ptr + node)) & (x > -float("inf")) & (best != INVALID)
        own = tl.where(kept, weight((tl.where(kept, x, largest) - largest) * inverse), 0)
        whole = tl.load(mass_ptr + node)
        if greedy:
            own = ((entries == best) & (entries >= 0)).to(tl.int64)
            whole = tl.full([], 1, tl.int64)
        own_outside = (whole - tl.sum(own)).to(tl.float64)
        own_masses = own.to(tl.float64)
        residual = own_masses
        outside = own_outside
        cursor = first
        if entering > 0:
            # Below an invalid row nothing can be judged: the node is a leaf.
            cursor = tl.where(best == INVALID, last, first)
        else:
            residual = tl.load(residual_ptr + node * ENTRIES + index)
            outside = tl.load(outside_ptr + node)
            acceptance = tl.load(acceptance_ptr + node)
            cursor = tl.load(cursor_ptr + node)

        # A node returned to has just lost the draw at its cursor; one entered tests its first.
        testing = entering > 0
        child = tl.full([], -1, tl.int64)
        child_acceptance = tl.full([], 0.0, tl.float64)
        while (cursor < last) & (child < 0):
            tokens, shares = draw_shares(
                cursor, first, token_ids_ptr + start, draw_children_ptr, draw_rows_ptr,
                draft_token_ids_ptr, draft_weights_ptr, replacement_ptr, support, SUPPORT,
            )  # fmt: skip
            candidate = tl.load(draw_children_ptr + cursor)
            token = tl.load(token_ids_ptr + start + candidate)
            mass = tl.sum(residual) + outside
            available = tl.sum(tl.where(entries == token, residual, 0.0)) / mass * acceptance
            drawn = tl.sum(tl.where(tokens == token, shares, 0.0))
            if testing & (available > 0.0):
                child = start + candidate
                child_acceptance = tl.where(available < drawn, available / drawn, 1.0)
            else:
                same = entries[:, None] == tokens[None, :]
                q = tl.sum(tl.where(same, shares[None, :], 0.0), axis=1)
                left = tl.maximum(residual - q * (mass / acceptance), 0.0)
                left = tl.where(entries >= 0, left, 0.0)
                share = acceptance * (tl.sum(left) + outside) / mass
                if share > 0.0:
                    residual = left
                    acceptance = share / (share + (1.0 - acceptance))
                else:
                    # At acceptance 1 rounding alone comes here; the target itself will do then.
                    residual = own_masses
                    outside = own_outside
                    if acceptance < 1.0:
                        # Nothing here can be accepted any more.
                        acceptance = tl.full([], 0.0, tl.float64)
                        cursor = last - 1
                cursor += 1
                testing = True

        if child >= 0:
            tl.store(residual_ptr + node * ENTRIES + index, residual)
            tl.store(outside_ptr + node, outside)
            tl.store(acceptance_ptr + node, acceptance)
            tl.store(cursor_ptr + node, cursor)
            node = child
            acceptance = child_acceptance
            depth += 1
            entering = tl.full([], 1, tl.int32)
        else:
            token_index = tl.zeros([4], tl.int32) + (node - start).to(tl.int32)
            coin = tl.max(uniform(token_index, position, seed, COIN)).to(tl.float64)
            if coin < acceptance:
                tl.store(residual_ptr + node * ENTRIES + index, residual)
                accepted = node
                node = tl.full([], -1, tl.int64)
            else:
                node = start + tl.load(parents_ptr + node)
                depth -= 1
                entering = tl.full([], 0, tl.int32)
        # What one thread stored, another may load.
        tl.debug_barrier()

    status = tl.full([], 0, tl.int32)
    following = tl.full([], -1, tl.int32)
    if accepted >= 0:
        best = tl.load(best_ptr + accepted)
        status = (best == INVALID).to(tl.int32)
        following = best
        if (status == 0) & (inverse > 0.0):
            row_ptr = logits_ptr + accepted * row_stride
            row_mask_ptr = bitmask_ptr + accepted * bitmask_stride
            entries, entries_ptr, count = node_entries(
                accepted, draw_indptr_ptr, draw_rows_ptr, draft_token_ids_ptr, support, ENTRIES
            )  # fmt: skip
            at = position + depth
            residual = tl.load(residual_ptr + accepted * ENTRIES + index) * UNIT
            some = (residual > LEAST_MASS) & (entries >= 0)
            logs = natural_log(tl.where(some, residual, 1.0).to(tl.float32))
            logs += gumbel(tl.where(some, entries, 0), at, seed, RESIDUAL)
            logs = tl.where(some, logs, -float("inf"))
            top = tl.max(logs)
            following = tl.min(tl.where(some & (logs == top), entries, NO_TOKEN))
            largest = tl.load(largest_ptr + accepted)
            cutoff = tl.load(cutoff_ptr + accepted)
            for first_id in range(0, vocab, BLOCK):
                ids = first_id + tl.arange(0, BLOCK)
                x = load_row(row_ptr, row_mask_ptr, ids, vocab, MASKED)
                keep = (x >= cutoff) & (x > -float("inf"))
                for i in range(0, count):
                    keep &= ids != tl.load(entries_ptr + i)
                noise = gumbel(ids, at, seed, RESIDUAL)
                scores = (tl.where(keep, x, largest) - largest) * inverse + noise
                scores = tl.where(keep, scores, -float("inf"))
                here = tl.max(scores)
                lowest = tl.min(tl.where(keep & (scores == here), ids, NO_TOKEN))
                better = (here > top) | ((here == top) & (lowest < following))
                following = tl.where(better & (lowest != NO_TOKEN), lowest, following)
                top = tl.maximum(here, top)
            # Rounding can leave nothing; any token of the target's will do then.
            following = tl.where(following == NO_TOKEN, best, following)
    num_accepted = tl.where(accepted >= 0, depth, 0)
    for i in range(num_accepted, max_depth):
        tl.store(accepted_nodes_out + i, -1)
        tl.store(token_ids_out + i + 1, -1)
    tl.store(token_ids_out + num_accepted, following)
    while depth > 0:
        depth -= 1
        tl.store(token_ids_out + depth, tl.load(token_ids_ptr + accepted))
        tl.store(accepted_nodes_out + depth, (accepted - start).to(tl.int32))
        accepted = start + tl.load(parents_ptr + accepted)
    tl.store(out_num_accepted_ptr + b, num_accepted)
    tl.store(out_status_ptr + b, status)
