"""The match rule: one program walks one tree and reads only the rows on its path."""

# mypy: ignore-errors

import triton
import triton.language as tl

from wanspec_kernels.verify.noise_kernels import TOKEN
from wanspec_kernels.verify.row_kernels import largest_token, row_bounds, row_cutoff, sample_row


@triton.jit
def verify_match_kernel(
    out_token_ids_ptr,  # [batch, max_depth + 1] int32
    out_num_accepted_ptr,  # [batch] int32
    out_accepted_nodes_ptr,  # [batch, max_depth] int32
    out_status_ptr,  # [batch] int32
    logits_ptr,  # [num_nodes, vocab], rows row_stride apart
    token_ids_ptr,  # [num_nodes] int32
    first_child_ptr,  # [num_nodes] int32
    next_sibling_ptr,  # [num_nodes] int32
    indptr_ptr,  # [batch + 1] int32
    positions_ptr,  # [batch] int64
    inverse_temperature_ptr,  # [batch] float32, 0 = greedy
    top_k_ptr,  # [batch] int32
    top_p_ptr,  # [batch] float32
    min_p_ptr,  # [batch] float32
    seed_ptr,  # [batch] int64
    max_depth,
    vocab,
    row_stride,
    BLOCK: tl.constexpr,
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
    filtered = (top_k > 0) | (top_p < 1.0) | (min_p > 0.0)
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
            if inverse_temperature > 0.0:
                cutoff = -float("inf")
                if filtered:
                    cutoff = row_cutoff(
                        row_ptr, vocab, largest, smallest,
                        inverse_temperature, top_k, top_p, min_p, BLOCK,
                    )  # fmt: skip
                _, node_token = sample_row(
                    row_ptr, vocab, 0.0, inverse_temperature, cutoff, position + accepted, seed,
                    0, row_ptr, 0, TOKEN, False, BLOCK,
                )  # fmt: skip
            else:
                node_token = largest_token(row_ptr, vocab, BLOCK)
            candidate = tl.load(first_child_ptr + start + node)
            while candidate >= 0:
                found = tl.load(token_ids_ptr + start + candidate) == node_token
                child = tl.where(found, candidate, child)
                sibling = tl.load(next_sibling_ptr + start + candidate)
                candidate = tl.where(found, -1, sibling)
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
