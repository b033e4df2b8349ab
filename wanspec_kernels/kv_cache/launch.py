"""Launches of the cache's kernels, for checked arguments."""

import torch
from torch import Tensor

from wanspec_kernels.kv_cache.kv_cache_kernels import compact_kernel, write_kernel

MAX_BLOCK = 1024
BLOCK_NODES = 4
COMPACT_BLOCK, MOVES = 256, 8  # of an entry, and entries that are moved together


def launch_write(
    k_pages: Tensor,
    v_pages: Tensor,
    keys: Tensor,
    values: Tensor,
    indptr: Tensor,
    context_lens: Tensor,
    page_table: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    max_nodes: int,
) -> None:
    num_pages, page_size, kv_heads, dim = k_pages.shape
    batch = context_lens.shape[0]
    if batch == 0 or keys.shape[0] == 0:
        return
    with torch.cuda.device_of(k_pages):
        write_kernel[(batch, -(-max_nodes // BLOCK_NODES))](
            k_pages,
            v_pages,
            keys,
            values,
            k_scale,
            v_scale,
            indptr,
            context_lens,
            page_table,
            num_pages,
            page_table.shape[1],
            page_table.stride(0),
            kv_heads,
            *k_pages.stride()[:3],
            *v_pages.stride()[:3],
            *keys.stride()[:2],
            *values.stride()[:2],
            PAGE_SIZE=page_size,
            DIM=dim,
            BLOCK=_block(kv_heads * dim),
            BLOCK_NODES=BLOCK_NODES,
            QUANTISE=k_scale is not None,
        )


def launch_compact(
    k_pages: Tensor,
    v_pages: Tensor,
    accepted_nodes: Tensor,
    num_accepted: Tensor,
    context_lens: Tensor,
    page_table: Tensor,
) -> None:
    num_layers, num_pages, page_size, kv_heads, dim = k_pages.shape
    batch, max_depth = accepted_nodes.shape
    if batch == 0 or max_depth == 0:
        return
    block = min(COMPACT_BLOCK, _block(kv_heads * dim))
    with torch.cuda.device_of(k_pages):
        compact_kernel[(batch, num_layers, -(-kv_heads * dim // block))](
            k_pages,
            v_pages,
            accepted_nodes,
            num_accepted,
            context_lens,
            page_table,
            max_depth,
            num_pages,
            page_table.shape[1],
            accepted_nodes.stride(0),
            page_table.stride(0),
            kv_heads,
            *k_pages.stride()[:4],
            *v_pages.stride()[:4],
            PAGE_SIZE=page_size,
            DIM=dim,
            BLOCK=block,
            MOVES=MOVES,
        )


def _block(entry: int) -> int:
    return min(MAX_BLOCK, 1 << (entry - 1).bit_length())
