"""Shapes of a launch, chosen from what the host knows, and the launch itself."""

from dataclasses import dataclass
from functools import cache
from math import e, log2

import torch
from torch import Tensor

from wanspec_kernels.attention.arguments import Scoring, Trees
from wanspec_kernels.attention.tree_attention_kernels import (
    merge_splits_kernel,
    tree_attention_kernel,
)

MAX_SPLITS = 32


@dataclass(frozen=True)
class Launch:
    """How `tree_attention_kernel` is cut into programs."""

    block_rows: int  # (node, head of the group) pairs a program; a power of two from 16 on
    block_slots: int  # keys a step; 16, 32 or 64
    num_splits: int  # programs that share one request's context
    num_warps: int
    num_stages: int


def choose_launch(
    rows: int,
    programs_a_block: int,
    max_context: int,
    dim: int,
    dtype: torch.dtype,
    processors: int,
) -> Launch:
    """`rows` of the largest tree, `programs_a_block` programs for each block of rows."""
    if dtype == torch.float32:
        # Without tensor cores a product is unrolled into single multiplications.
        most_rows, block_slots = 32, 16
    else:
        most_rows, block_slots = (128, 64) if dim <= 128 else (64, 32)
    block_rows = min(max(16, _next_power_of_two(rows)), most_rows)
    blocks = programs_a_block * -(-rows // block_rows)
    wanted = -(-2 * processors // max(blocks, 1))
    useful = max_context // (4 * block_slots)
    num_splits = max(1, min(wanted, useful, MAX_SPLITS))
    num_warps = 8 if block_rows == 128 or dim > 128 else 4
    return Launch(block_rows, block_slots, num_splits, num_warps, num_stages=2)


def launch_tree_attention(
    query: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    trees: Trees,
    scoring: Scoring,
    launch: Launch | None = None,
) -> Tensor:
    """`tree_attention` of checked arguments by the Triton kernels."""
    _require_device(query, k_pages)
    num_nodes, heads, dim = query.shape
    page_size, kv_heads = k_pages.shape[1:3]
    batch = trees.context_lens.shape[0]
    group = heads // kv_heads
    out = _allocate((num_nodes, heads, dim), query.dtype, query.device)
    if num_nodes == 0 or batch == 0:
        return out
    max_context = trees.page_table.shape[1] * page_size
    if scoring.window is not None:
        max_context = min(max_context, scoring.window)
    launch = launch or choose_launch(
        trees.max_nodes * group,
        batch * kv_heads,
        max_context,
        dim,
        query.dtype,
        _processors(query.device),
    )
    splits = launch.num_splits
    is_split = splits > 1
    partial = row_max = row_sum = out  # not written unless the context is split
    if is_split:
        shape = (splits, num_nodes, heads)
        partial = _allocate((*shape, dim), torch.float32, query.device)
        row_max = _allocate(shape, torch.float32, query.device)
        row_sum = _allocate(shape, torch.float32, query.device)
    factor, cap_log2 = scoring.scale * log2(e), None
    if scoring.softcap is not None:
        factor, cap_log2 = 2 * factor / scoring.softcap, scoring.softcap * log2(e)
    row_blocks = -(-trees.max_nodes * group // launch.block_rows)
    block_dim = max(16, _next_power_of_two(dim))
    with torch.cuda.device_of(query):
        tree_attention_kernel[(batch * row_blocks * kv_heads, splits)](
            out,
            partial,
            row_max,
            row_sum,
            query,
            k_pages,
            v_pages,
            trees.page_table,
            trees.context_lens,
            trees.indptr,
            trees.ancestor_bits,
            trees.depth,
            scoring.sinks,
            scoring.k_scale,
            scoring.v_scale,
            scoring.window,
            factor,
            cap_log2,
            num_nodes,
            kv_heads,
            row_blocks,
            splits,
            trees.ancestor_bits.shape[1],
            query.stride(0),
            query.stride(1),
            *k_pages.stride()[:3],
            *v_pages.stride()[:3],
            trees.page_table.stride(0),
            GROUP=group,
            HEAD_DIM=dim,
            PAGE_SIZE=page_size,
            BLOCK_ROWS=launch.block_rows,
            BLOCK_SLOTS=launch.block_slots,
            BLOCK_DIM=block_dim,
            IS_SPLIT=is_split,
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
            enable_fp_fusion=True,  # its default differs between versions of Triton
        )
        if is_split:
            merge_splits_kernel[(num_nodes * heads,)](
                out,
                partial,
                row_max,
                row_sum,
                trees.indptr,
                batch,
                num_nodes,
                heads,
                splits,
                HEAD_DIM=dim,
                BLOCK_SPLITS=_next_power_of_two(splits),
                BLOCK_DIM=block_dim,
                num_warps=4,
                enable_fp_fusion=True,
            )
    return out


def _require_device(query: Tensor, k_pages: Tensor) -> None:
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        raise RuntimeError("tree_attention: Triton's interpreter cannot multiply bfloat16")
    if k_pages.is_cuda and k_pages.dtype == torch.float8_e4m3fn:
        capability = torch.cuda.get_device_capability(k_pages.device)
        if capability < (8, 9):
            raise RuntimeError(
                "tree_attention: backend triton: expected compute capability 8.9 or more for "
                f"float8 pages, got {capability[0]}.{capability[1]}"
            )


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def _next_power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


@cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
