"""Writing and moving entries of a paged cache. An entry is one slot's numbers."""

import triton
import triton.language as tl

MAX_FLOAT8 = tl.constexpr(448.0)  # of e4m3


@triton.jit
def quantise(
    entry,  # [rows, columns]
    scale_ptr,  # [kv_heads] float32
    head,  # [columns]
    mask,  # [columns]
):
    scale = tl.load(scale_ptr + head, mask=mask, other=1.0)
    scaled = tl.div_rn(entry.to(tl.float32), tl.broadcast_to(scale[None, :], entry.shape))
    return tl.clamp(scaled, -MAX_FLOAT8, MAX_FLOAT8, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def write_kernel(
    k_ptr, v_ptr,  # [num_pages, PAGE_SIZE, kv_heads, DIM], out
    keys_ptr, values_ptr,  # [num_nodes, kv_heads, DIM]
    k_scale_ptr, v_scale_ptr,  # [kv_heads] float32, read if QUANTISE
    indptr_ptr,  # [batch + 1] int32
    context_lens_ptr,  # [batch] int32
    page_table_ptr,  # [batch, max_pages] int32
    num_pages, max_pages, stride_page_table, kv_heads,
    stride_k_page, stride_k_slot, stride_k_head,
    stride_v_page, stride_v_slot, stride_v_head,
    stride_keys_node, stride_keys_head, stride_values_node, stride_values_head,
    PAGE_SIZE: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_NODES: tl.constexpr,
    QUANTISE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    first = tl.load(indptr_ptr + b).to(tl.int64)
    tree_nodes = tl.load(indptr_ptr + b + 1) - first
    node = tl.program_id(1) * BLOCK_NODES + tl.arange(0, BLOCK_NODES)
    if tl.program_id(1) * BLOCK_NODES >= tree_nodes:
        return
    slot = tl.load(context_lens_ptr + b) + node
    inside = (node < tree_nodes) & (slot < max_pages * PAGE_SIZE)
    page = tl.load(
        page_table_ptr + b * stride_page_table + slot // PAGE_SIZE, mask=inside, other=-1
    ).to(tl.int64)
    inside &= (page >= 0) & (page < num_pages)
    row_in_page = (slot % PAGE_SIZE).to(tl.int64)
    row = first + node
    for start in range(0, kv_heads * DIM, BLOCK):
        offset = start + tl.arange(0, BLOCK)
        mask = inside[:, None] & (offset < kv_heads * DIM)
        head, dim = (offset // DIM).to(tl.int64), offset % DIM
        entry = tl.load(
            keys_ptr + row[:, None] * stride_keys_node + head * stride_keys_head + dim, mask=mask
        )
        if QUANTISE:
            entry = quantise(entry, k_scale_ptr, head, offset < kv_heads * DIM)
        place = page * stride_k_page + row_in_page * stride_k_slot
        tl.store(
            k_ptr + place[:, None] + head * stride_k_head + dim,
            entry.to(k_ptr.dtype.element_ty),
            mask=mask,
        )
        entry = tl.load(
            values_ptr + row[:, None] * stride_values_node + head * stride_values_head + dim,
            mask=mask,
        )
        if QUANTISE:
            entry = quantise(entry, v_scale_ptr, head, offset < kv_heads * DIM)
        place = page * stride_v_page + row_in_page * stride_v_slot
        tl.store(
            v_ptr + place[:, None] + head * stride_v_head + dim,
            entry.to(v_ptr.dtype.element_ty),
            mask=mask,
        )


@triton.jit
def compact_kernel(
    k_ptr, v_ptr,  # [num_layers, num_pages, PAGE_SIZE, kv_heads, DIM], in place
    accepted_nodes_ptr,  # [batch, max_depth] int32
    num_accepted_ptr,  # [batch] int32
    context_lens_ptr,  # [batch] int32
    page_table_ptr,  # [batch, max_pages] int32
    max_depth, num_pages, max_pages, stride_accepted, stride_page_table, kv_heads,
    stride_k_layer, stride_k_page, stride_k_slot, stride_k_head,
    stride_v_layer, stride_v_page, stride_v_slot, stride_v_head,
    PAGE_SIZE: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, MOVES: tl.constexpr,
):  # fmt: skip
    """MOVES at a time, all read before any is written.

    A move reads a slot at or behind its own target, so behind all earlier ones: none of them can
    change what it reads.
    """
    b = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    offset = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    head, dim = (offset // DIM).to(tl.int64), offset % DIM
    k_ptr += layer * stride_k_layer + head * stride_k_head + dim
    v_ptr += layer * stride_v_layer + head * stride_v_head + dim
    page_table_ptr += b * stride_page_table
    accepted_nodes_ptr += b * stride_accepted
    context_len = tl.load(context_lens_ptr + b).to(tl.int64)
    count = tl.minimum(tl.load(num_accepted_ptr + b), max_depth)
    for first in range(0, count, MOVES):
        d = first + 1 + tl.arange(0, MOVES)
        node = tl.load(accepted_nodes_ptr + d - 1, mask=d <= count, other=0)
        source, target = context_len + node, context_len + d
        moves = (node > d) & (source < max_pages * PAGE_SIZE)
        from_page = tl.load(page_table_ptr + source // PAGE_SIZE, mask=moves, other=-1)
        to_page = tl.load(page_table_ptr + target // PAGE_SIZE, mask=moves, other=-1)
        lowest, highest = tl.minimum(from_page, to_page), tl.maximum(from_page, to_page)
        moves &= (lowest >= 0) & (highest < num_pages)
        mask = moves[:, None] & (offset < kv_heads * DIM)[None, :]
        from_page, to_page = from_page.to(tl.int64), to_page.to(tl.int64)
        from_row, to_row = source % PAGE_SIZE, target % PAGE_SIZE
        k_from = from_page * stride_k_page + from_row * stride_k_slot
        v_from = from_page * stride_v_page + from_row * stride_v_slot
        keys = tl.load(k_ptr[None, :] + k_from[:, None], mask=mask)
        values = tl.load(v_ptr[None, :] + v_from[:, None], mask=mask)
        tl.debug_barrier()
        k_to = to_page * stride_k_page + to_row * stride_k_slot
        v_to = to_page * stride_v_page + to_row * stride_v_slot
        tl.store(k_ptr[None, :] + k_to[:, None], keys, mask=mask)
        tl.store(v_ptr[None, :] + v_to[:, None], values, mask=mask)
