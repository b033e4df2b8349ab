"""The rejection rule: a group of programs walks one tree and reads only the rows on its path."""

# mypy: ignore-errors

import triton
import triton.language as tl

from wanspec_kernels.verify.cutoff_kernels import (
    find_cutoff,
    load_candidates,
    mass_from,
    min_p_cutoff,
    sample_candidates,
)
from wanspec_kernels.verify.group_kernels import (
    group_concatenate,
    group_mass,
    group_max,
)
from wanspec_kernels.verify.noise_kernels import RESIDUAL, UNIT, weight
from wanspec_kernels.verify.residual_kernels import (
    ALL_REJECTED,
    UNDECIDED,
    best_entry,
    entry_masses,
    is_in_doubt,
    load_entries,
    test_draws,
)
from wanspec_kernels.verify.row_kernels import (
    INVALID,
    NONE,
    ROUGH_ERROR,
    row_largest,
    row_largest_and_mass,
    row_maxima,
    sample_row,
    token_of,
)
from wanspec_kernels.verify.tree_kernels import inverse, pad


@triton.jit(do_not_specialize=["batch", "max_depth", "bitmask_stride", "support"])
def verify_rejection_kernel(
    out_token_ids_ptr,  # [batch, max_depth + 1] int32
    out_num_accepted_ptr,  # [batch] int32
    out_accepted_nodes_ptr,  # [batch, max_depth] int32
    out_status_ptr,  # [batch] int32
    logits_ptr,  # [num_nodes, vocab], rows row_stride apart
    bitmask_ptr,  # [num_nodes, bitmask_stride] int32; anything unless MASKED
    token_ids_ptr,  # [num_nodes] int32
    indptr_ptr,  # [batch + 1] int32
    draw_indptr_ptr,  # [num_nodes + 1] int32
    draw_children_ptr,  # [num_draws] int32
    draw_rows_ptr,  # [num_draws] int32
    draft_token_ids_ptr,  # [num_rows, support] int32, -1 = padding
    draft_weights_ptr,  # [num_rows, support] int32
    replacement_ptr,  # [num_rows] bool
    positions_ptr,  # [batch] int64
    temperature_ptr,  # [batch] float32, 0 = greedy
    top_k_ptr,  # [batch] int32
    top_p_ptr,  # [batch] float32
    min_p_ptr,  # [batch] float32
    seed_ptr,  # [batch] int64
    counters_ptr,  # [groups, 64] int32 zeros: meetings at 0, candidates at 32
    slots_ptr,  # [groups, 2, 2, GROUP] int64
    maxima_ptr,  # [groups, 2, GROUP * MAXIMA] float32
    values_ptr,  # [groups, CAPACITY] float32
    ids_ptr,  # [groups, CAPACITY] int32
    batch,
    max_depth,
    vocab,
    row_stride,
    bitmask_stride,
    support,
    MAX_TOP_K: tl.constexpr,  # larger ones take the long way
    CAPACITY: tl.constexpr,  # of the candidates
    MAXIMA: tl.constexpr,  # of each program
    SHIFT: tl.constexpr,  # low bits that keys of this dtype never use
    MASKED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    SUPPORT: tl.constexpr,  # power of two, support or more
    ENTRIES: tl.constexpr,  # power of two, support * the rows of any one node or more
):
    rank = tl.program_id(0) % GROUP
    this = (tl.program_id(0) // GROUP).to(tl.int64)
    counter_ptr = counters_ptr + this * 64
    group = (counter_ptr, slots_ptr + this * (4 * GROUP), rank)
    group_maxima_ptr = maxima_ptr + this * (2 * GROUP * MAXIMA)
    candidates = (counter_ptr + 32, values_ptr + this * CAPACITY, ids_ptr + this * CAPACITY)
    epoch = 0
    counted = 0

    for b in range(tl.program_id(0) // GROUP, batch, tl.num_programs(0) // GROUP):
        start = tl.load(indptr_ptr + b)
        end = tl.load(indptr_ptr + b + 1)
        position = tl.load(positions_ptr + b)
        inverse_temperature = inverse(tl.load(temperature_ptr + b))
        top_k = tl.load(top_k_ptr + b)
        top_p = tl.load(top_p_ptr + b)
        min_p = tl.load(min_p_ptr + b)
        seed = tl.load(seed_ptr + b)
        filtered = (top_k > 0) | (top_p < 1.0) | (min_p > 0.0)
        token_ids_out = out_token_ids_ptr + tl.cast(b, tl.int64) * (max_depth + 1)
        accepted_nodes_out = out_accepted_nodes_ptr + tl.cast(b, tl.int64) * max_depth

        accepted = 0
        num_tokens = 0
        status = 0
        node = tl.where(end > start, 0, -1)
        while node >= 0:
            row_ptr = logits_ptr + (start + node).to(tl.int64) * row_stride
            row_bitmask_ptr = bitmask_ptr + (start + node).to(tl.int64) * bitmask_stride
            row = (row_ptr, row_bitmask_ptr, vocab, rank)
            noise_key = (position + accepted, seed)
            first_draw = tl.load(draw_indptr_ptr + start + node)
            last_draw = tl.load(draw_indptr_ptr + start + node + 1)
            num_entries = 0
            first_row = 0
            if last_draw > first_draw:
                first_row = tl.load(draw_rows_ptr + first_draw)
                num_entries = (tl.load(draw_rows_ptr + last_draw - 1) + 1 - first_row) * support
            entries_ptr = draft_token_ids_ptr + first_row.to(tl.int64) * support
            entries = load_entries(entries_ptr, num_entries, ENTRIES)

            best = tl.full([], NONE, tl.int64)
            cutoff = tl.full([], -float("inf"), tl.float32)
            largest = tl.full([], -float("inf"), tl.float32)
            num_candidates = tl.full([], -1, tl.int32)
            residual = tl.zeros([ENTRIES], tl.float64)
            # What the mass is at least and at most; equal where it is known exactly.
            least_mass = tl.full([], 1.0, tl.float64)
            most_mass = tl.full([], 1.0, tl.float64)
            if inverse_temperature == 0.0:
                best, epoch = group_max(
                    row_largest(row, GROUP, MASKED, BLOCK), group, epoch, GROUP
                )  # fmt: skip
                if best == NONE:
                    best = tl.full([], INVALID, tl.int64)
                residual = (entries == token_of(best)).to(tl.float64)
            elif filtered:
                maxima, epoch = group_concatenate(
                    row_maxima(row, MAXIMA, GROUP, MASKED, BLOCK),
                    group_maxima_ptr, group, epoch, MAXIMA, GROUP,
                )  # fmt: skip
                largest = tl.max(maxima)
                if (largest == float("inf")) | (largest == -float("inf")):
                    best = tl.full([], INVALID, tl.int64)
                else:
                    if (top_k > 0) | (top_p < 1.0):
                        total = tl.full([], 0, tl.int64)
                        if top_k == 0:
                            total, epoch = mass_from(
                                row, cutoff, largest, inverse_temperature, group, epoch,
                                GROUP, MASKED, BLOCK,
                            )  # fmt: skip
                        cutoff, num_candidates, counted, epoch = find_cutoff(
                            row, maxima, largest, inverse_temperature, top_k, top_p,
                            total, candidates, counted, group, epoch,
                            MAX_TOP_K, CAPACITY, MAXIMA, SHIFT, GROUP, MASKED, BLOCK,
                        )  # fmt: skip
                    if min_p > 0.0:
                        least = min_p_cutoff(largest, inverse_temperature, min_p)
                        cutoff = tl.maximum(cutoff, least)
                    if num_candidates >= 0:
                        values = load_candidates(candidates, num_candidates, CAPACITY)[0]
                        weights = weight((values - largest) * inverse_temperature)
                        kept_mass = tl.sum(tl.where(values >= cutoff, weights, 0))
                        least_mass = kept_mass.to(tl.float64) * UNIT
                        most_mass = least_mass
            if (inverse_temperature > 0.0) & (num_candidates < 0) & (best != INVALID):
                largest, rough_mass = row_largest_and_mass(
                    row, cutoff, inverse_temperature, GROUP, MASKED, BLOCK
                )
                largest, rough_mass, epoch = group_mass(
                    largest, rough_mass, inverse_temperature, group, epoch, GROUP
                )
                if (largest == float("inf")) | (largest == -float("inf")):
                    best = tl.full([], INVALID, tl.int64)
                least_mass = rough_mass.to(tl.float64) * (1.0 - ROUGH_ERROR)
                most_mass = rough_mass.to(tl.float64) * (1.0 + ROUGH_ERROR)

            node_token = -1
            child = -1
            if best == INVALID:
                status = 1
            else:
                if inverse_temperature > 0.0:
                    residual = entry_masses(
                        row, largest, inverse_temperature, cutoff, entries, MASKED
                    )
                outside = tl.full([], NONE, tl.int64)  # the best of what is no entry
                num_excluded = num_entries
                excluded = entries
                testing = True
                while testing:
                    child, least_left, most_left = test_draws(
                        residual, (least_mass, most_mass), entries, first_draw, last_draw,
                        position + accepted, seed, token_ids_ptr + start, draw_children_ptr,
                        draw_rows_ptr, draft_token_ids_ptr, draft_weights_ptr, replacement_ptr,
                        support, SUPPORT,
                    )  # fmt: skip
                    testing = child == UNDECIDED
                    if (child == ALL_REJECTED) & (inverse_temperature > 0.0):
                        # The recovered token, or the bonus token if nothing was rejected.
                        scale = (largest, inverse_temperature)
                        is_rough = least_mass != most_mass
                        best = best_entry(least_left, entries, position + accepted, seed)
                        choosing = outside == NONE
                        while choosing:
                            if num_candidates >= 0:
                                outside = sample_candidates(
                                    candidates, num_candidates, cutoff, scale, noise_key,
                                    entries_ptr, num_excluded, RESIDUAL, CAPACITY,
                                )  # fmt: skip
                            else:
                                outside, epoch = group_max(
                                    sample_row(
                                        row, cutoff, scale, noise_key, excluded,
                                        RESIDUAL, True, GROUP, MASKED, BLOCK,
                                    ),
                                    group, epoch, GROUP,
                                )  # fmt: skip
                            # Rounding can leave nothing; any token of the target's will do then.
                            nothing = tl.maximum(best, outside) == NONE
                            choosing = nothing & (num_excluded > 0) & (is_rough == 0)
                            if choosing:
                                num_excluded = 0
                                excluded = tl.full([ENTRIES], -1, tl.int32)
                        best = tl.maximum(best, outside)
                        testing = is_rough & is_in_doubt(
                            best, most_left, entries, position + accepted, seed
                        )
                    if testing:
                        exact_mass, epoch = mass_from(
                            row, cutoff, largest, inverse_temperature, group, epoch,
                            GROUP, MASKED, BLOCK,
                        )  # fmt: skip
                        least_mass = exact_mass.to(tl.float64) * UNIT
                        most_mass = least_mass
                node_token = token_of(best)
                if child >= 0:
                    node_token = tl.load(token_ids_ptr + start + child)
            if rank == 0:
                tl.store(token_ids_out + num_tokens, node_token)
                if child >= 0:
                    tl.store(accepted_nodes_out + accepted, child)
            num_tokens += 1
            accepted += (child >= 0).to(tl.int32)
            node = child

        if rank == 0:
            pad(token_ids_out, num_tokens, max_depth + 1)
            pad(accepted_nodes_out, accepted, max_depth)
            tl.store(out_num_accepted_ptr + b, accepted)
            tl.store(out_status_ptr + b, status)
