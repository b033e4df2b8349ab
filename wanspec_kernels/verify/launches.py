"""How the kernels are launched; importing this loads Triton."""

import triton
from torch import Tensor

from wanspec_kernels.verify.match_kernel import verify_match_kernel
from wanspec_kernels.verify.rejection_kernel import verify_rejection_kernel

MAX_BLOCK = 4096
# Without it a multiply and an add may become one operation, and noise and weights other bits.
EXACT = {"enable_fp_fusion": False}


def verify_match(
    out_token_ids: Tensor,
    out_num_accepted: Tensor,
    out_accepted_nodes: Tensor,
    out_status: Tensor,
    logits: Tensor,
    *tree_and_parameters: Tensor,
) -> None:
    batch, max_depth = out_accepted_nodes.shape
    if batch == 0:
        return
    vocab = logits.shape[1]
    verify_match_kernel[(batch,)](
        out_token_ids,
        out_num_accepted,
        out_accepted_nodes,
        out_status,
        logits,
        *tree_and_parameters,
        max_depth,
        vocab,
        logits.stride(0),
        BLOCK=_block(vocab),
        num_warps=8,
        **EXACT,
    )


def verify_rejection(
    out_token_ids: Tensor,
    out_num_accepted: Tensor,
    out_accepted_nodes: Tensor,
    out_status: Tensor,
    logits: Tensor,
    token_ids: Tensor,
    indptr: Tensor,
    draw_indptr: Tensor,
    draw_children: Tensor,
    draw_rows: Tensor,
    draft_token_ids: Tensor,
    draft_weights: Tensor,
    replacement: Tensor,
    max_rows: int,
    *parameters: Tensor,
) -> None:
    batch, max_depth = out_accepted_nodes.shape
    if batch == 0:
        return
    vocab, support = logits.shape[1], draft_token_ids.shape[1]
    verify_rejection_kernel[(batch,)](
        out_token_ids,
        out_num_accepted,
        out_accepted_nodes,
        out_status,
        logits,
        token_ids,
        indptr,
        draw_indptr,
        draw_children,
        draw_rows,
        draft_token_ids,
        draft_weights,
        replacement,
        *parameters,
        max_depth,
        vocab,
        logits.stride(0),
        support,
        BLOCK=_block(vocab),
        SUPPORT=_power_of_two(support),
        ENTRIES=_power_of_two(max_rows * support),
        num_warps=8,
        **EXACT,
    )


def _block(vocab: int) -> int:
    return min(MAX_BLOCK, _power_of_two(vocab))


def _power_of_two(n: int) -> int:
    """At least 16: smaller blocks gain nothing."""
    return int(triton.next_power_of_2(max(n, 16)))
