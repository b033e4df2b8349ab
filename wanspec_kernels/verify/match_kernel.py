"""The match rule: a group of programs walks one tree and reads only the rows on its path."""

# mypy: ignore-errors

import triton
import triton.language as tl

from wanspec_kernels.verify.cutoff_kernels import find_cutoff, min_p_cutoff, sample_candidates
from wanspec_kernels.verify.group_kernels import group_concatenate, group_max, group_sum_pair
from wanspec_kernels.verify.noise_kernels import TOKEN
from wanspec_kernels.verify.row_kernels import (
    INVALID,
    NONE,
    is_number,
    key_of,
    load_logits,
    masses_from,
    row_largest,
    row_maxima,
    sample_row,
    token_of,
    value_of,
)
from wanspec_kernels.verify.tree_kernels import child_of, inverse, pad


@triton.jit(do_not_specialize=["batch", "max_depth", "bitmask_stride"])
def verify_match_kernel(
    out_token_ids_ptr,  # [batch, max_depth + 1] int32
    out_num_accepted_ptr,  # [batch] int32
    out_accepted_nodes_ptr,  # [batch, max_depth] int32
    out_status_ptr,  # [batch] int32
    logits_ptr,  # [num_nodes, vocab], rows row_stride apart
    bitmask_ptr,  # [num_nodes, bitmask_stride] int32; anything unless MASKED
    token_ids_ptr,  # [num_nodes] int32
    parents_ptr,  # [num_nodes] int32
    indptr_ptr,  # [batch + 1] int32
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
    MAX_TOP_K: tl.constexpr,  # larger ones take the long way
    CAPACITY: tl.constexpr,  # of the candidates
    MAXIMA: tl.constexpr,  # of each program
    SHIFT: tl.constexpr,  # low bits that keys of this dtype never use
    MASKED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rank = tl.program_id(0) % GROUP
    this = (tl.program_id(0) // GROUP).to(tl.int64)
    counter_ptr = counters_ptr + this * 64
    group = (counter_ptr, slots_ptr + this * (4 * GROUP), rank)
    group_maxima_ptr = maxima_ptr + this * (2 * GROUP * MAXIMA)
    candidates = (counter_ptr + 32, values_ptr + this * CAPACITY, ids_ptr + this * CAPACITY)
    nothing = tl.full([16], -1, tl.int32)
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
        scale = (0.0, inverse_temperature)
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
            best = tl.full([], NONE, tl.int64)
            if inverse_temperature == 0.0:
                best, epoch = group_max(
                    row_largest(row, GROUP, MASKED, BLOCK), group, epoch, GROUP
                )  # fmt: skip
            else:
                cutoff = tl.full([], -float("inf"), tl.float32)
                largest = tl.full([], -float("inf"), tl.float32)
                choosing = True
                if filtered:
                    maxima, epoch = group_concatenate(
                        row_maxima(row, MAXIMA, GROUP, MASKED, BLOCK),
                        group_maxima_ptr, group, epoch, MAXIMA, GROUP,
                    )  # fmt: skip
                    largest = tl.max(maxima)
                    choosing = (largest < float("inf")) & (largest > -float("inf"))
                    if choosing:
                        if min_p > 0.0:
                            cutoff = min_p_cutoff(largest, inverse_temperature, min_p)
                        if top_k > 0:
                            least, num_candidates, counted, epoch = find_cutoff(
                                row, maxima, largest, inverse_temperature, top_k, top_p,
                                tl.full([], 0, tl.int64), candidates, counted, group, epoch,
                                MAX_TOP_K, CAPACITY, MAXIMA, SHIFT, GROUP, MASKED, BLOCK,
                            )  # fmt: skip
                            cutoff = tl.maximum(cutoff, least)
                            if num_candidates >= 0:
                                best = sample_candidates(
                                    candidates, num_candidates, cutoff, scale, noise_key,
                                    token_ids_ptr, 0, TOKEN, CAPACITY,
                                )  # fmt: skip
                                choosing = False
                    else:
                        best = tl.full([], INVALID, tl.int64)
                while choosing:
                    best, epoch = group_max(
                        sample_row(
                            row, cutoff, scale, noise_key, nothing,
                            TOKEN, False, GROUP, MASKED, BLOCK,
                        ),
                        group, epoch, GROUP,
                    )  # fmt: skip
                    choosing = False
                    # Under top_p alone a token drawn from the whole row is kept, or bounds what is.
                    if (top_p < 1.0) & (top_k == 0) & (best != NONE):
                        x = load_logits(row, token_of(best), True, MASKED)
                        if x < largest:
                            above = value_of(key_of(x).to(tl.int64) + 1)
                            total, mass = masses_from(
                                row, -float("inf"), above, largest, inverse_temperature,
                                GROUP, MASKED, BLOCK,
                            )  # fmt: skip
                            total, mass, epoch = group_sum_pair(total, mass, group, epoch, GROUP)
                            nucleus = top_p.to(tl.float64) * total.to(tl.float64)
                            choosing = mass.to(tl.float64) >= nucleus
                            cutoff = tl.maximum(cutoff, above)
            node_token = -1
            child = -1
            status = tl.where(is_number(best), 0, 1)
            if status == 0:
                node_token = token_of(best)
                child = child_of(
                    token_ids_ptr + start, parents_ptr + start, end - start, node, node_token
                )
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
