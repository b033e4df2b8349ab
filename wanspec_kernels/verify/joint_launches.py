"""Launches of the kernels of `block` and `traversal`; their shapes suit any device."""

import torch
from torch import Tensor

from wanspec_kernels.verify.joint_kernels import row_statistics_kernel, verify_joint_kernel
from wanspec_kernels.verify.launches import BLOCK, EXACT, power_of_two


def verify(
    out_token_ids: Tensor,
    out_num_accepted: Tensor,
    out_accepted_nodes: Tensor,
    out_status: Tensor,
    logits: Tensor,
    token_bitmask: Tensor | None,
    token_ids: Tensor,
    parents: Tensor,
    indptr: Tensor,
    draw_indptr: Tensor,
    draw_children: Tensor,
    draw_rows: Tensor,
    draft_token_ids: Tensor,
    draft_weights: Tensor,
    replacement: Tensor,
    max_rows: int,
    positions: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
) -> None:
    batch, max_depth = out_accepted_nodes.shape
    num_nodes, vocab = logits.shape
    if batch == 0:
        return
    support = draft_token_ids.shape[1]
    entries = power_of_two(max_rows * support)
    block = min(BLOCK, power_of_two(vocab))

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    rows = torch.arange(num_nodes, dtype=torch.int32, device=logits.device)
    trees = torch.searchsorted(indptr, rows, right=True) - 1
    statistics = (
        empty(num_nodes, dtype=torch.float32),
        empty(num_nodes, dtype=torch.int32),
        empty(num_nodes, dtype=torch.float32),
        empty(num_nodes, dtype=torch.int64),
    )
    bitmask = logits if token_bitmask is None else token_bitmask
    strides = (logits.stride(0), 0 if token_bitmask is None else token_bitmask.stride(0))
    masked = token_bitmask is not None
    if num_nodes > 0:
        row_statistics_kernel[(num_nodes,)](
            *statistics,
            logits,
            bitmask,
            trees,
            temperature,
            top_k,
            top_p,
            min_p,
            batch,
            vocab,
            *strides,
            MASKED=masked,
            BLOCK=block,
            num_warps=8,
            **EXACT,
        )
    verify_joint_kernel[(batch,)](
        out_token_ids,
        out_num_accepted,
        out_accepted_nodes,
        out_status,
        logits,
        bitmask,
        token_ids,
        parents,
        indptr,
        draw_indptr,
        draw_children,
        draw_rows,
        draft_token_ids,
        draft_weights,
        replacement,
        positions,
        temperature,
        seed,
        *statistics,
        empty(num_nodes, dtype=torch.float64),
        empty(num_nodes, dtype=torch.float64),
        empty(num_nodes, entries, dtype=torch.float64),
        empty(num_nodes, dtype=torch.int32),
        max_depth,
        vocab,
        *strides,
        support,
        MASKED=masked,
        BLOCK=block,
        SUPPORT=power_of_two(support),
        ENTRIES=entries,
        num_warps=8,
        **EXACT,
    )
