"""Tree attention over a paged cache, context split across programs; and the merge of the splits."""

import triton
import triton.language as tl


@triton.jit
def tree_attention_kernel(
    out_ptr,  # [num_nodes, heads, HEAD_DIM] query's dtype if one split, else partial
    partial_ptr,  # [num_splits, num_nodes, heads, HEAD_DIM] float32: normalised by nothing yet
    max_ptr,  # [num_splits, num_nodes, heads] float32, in powers of two; -inf = nothing seen
    sum_ptr,  # [num_splits, num_nodes, heads] float32
    query_ptr,  # [num_nodes, heads, HEAD_DIM]
    k_ptr, v_ptr,  # [num_pages, PAGE_SIZE, kv_heads, HEAD_DIM]
    page_table_ptr,  # [batch, max_pages] int32
    context_lens_ptr,  # [batch] int32
    indptr_ptr,  # [batch + 1] int32
    ancestor_bits_ptr,  # [num_nodes, words] int64
    scale_log2,  # the scores' factor times log2(e)
    num_nodes, kv_heads, row_blocks, num_splits, words,
    stride_query_node, stride_query_head,
    stride_k_page, stride_k_slot, stride_k_head,
    stride_v_page, stride_v_slot, stride_v_head,
    stride_page_table,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_SLOTS: tl.constexpr, BLOCK_DIM: tl.constexpr,
    IS_SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    split = tl.program_id(1)
    kv_head = program % kv_heads
    row_block = program // kv_heads % row_blocks
    b = program // kv_heads // row_blocks

    first = tl.load(indptr_ptr + b).to(tl.int64)
    tree_nodes = (tl.load(indptr_ptr + b + 1) - first).to(tl.int32)
    if row_block * BLOCK_ROWS >= tree_nodes * GROUP:
        return
    context_len = tl.load(context_lens_ptr + b)

    # Rows are (node, head within the group), so that a group's heads read each key once.
    row = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = row < tree_nodes * GROUP
    node = first + row // GROUP
    head = (kv_head * GROUP + row % GROUP).to(tl.int64)
    dim = tl.arange(0, BLOCK_DIM)
    is_dim = dim < HEAD_DIM
    query = tl.load(
        query_ptr + node[:, None] * stride_query_node + head[:, None] * stride_query_head + dim,
        mask=is_row[:, None] & is_dim,
        other=0.0,
    )

    k_ptr += kv_head.to(tl.int64) * stride_k_head
    v_ptr += kv_head.to(tl.int64) * stride_v_head
    page_table_ptr += b.to(tl.int64) * stride_page_table
    column = tl.arange(0, BLOCK_SLOTS)
    acc = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    row_max = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_ROWS], tl.float32)

    share = tl.cdiv(tl.cdiv(context_len, BLOCK_SLOTS), num_splits) * BLOCK_SLOTS
    begin = split * share
    end = tl.minimum(begin + share, context_len)
    full_end = begin + tl.maximum(end - begin, 0) // BLOCK_SLOTS * BLOCK_SLOTS
    for start in range(begin, full_end, BLOCK_SLOTS):
        slot = start + column
        page = tl.load(page_table_ptr + slot // PAGE_SIZE).to(tl.int64)
        row_in_page = (slot % PAGE_SIZE).to(tl.int64)
        k_row = page * stride_k_page + row_in_page * stride_k_slot
        v_row = page * stride_v_page + row_in_page * stride_v_slot
        if HEAD_DIM == BLOCK_DIM:
            keys = tl.load(k_ptr + k_row[:, None] + dim)
            values = tl.load(v_ptr + v_row[:, None] + dim)
        else:
            keys = tl.load(k_ptr + k_row[:, None] + dim, mask=is_dim[None, :], other=0.0)
            values = tl.load(v_ptr + v_row[:, None] + dim, mask=is_dim[None, :], other=0.0)
        scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale_log2
        acc, row_max, row_sum = accumulate(acc, row_max, row_sum, scores, values, PRECISION)

    if full_end < end:
        slot = full_end + column
        keys, values = load_masked(
            k_ptr, v_ptr, page_table_ptr, slot, slot < end, dim, is_dim,
            stride_k_page, stride_k_slot, stride_v_page, stride_v_slot, PAGE_SIZE,
        )  # fmt: skip
        scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale_log2
        scores = tl.where((slot < end)[None, :], scores, float("-inf"))
        acc, row_max, row_sum = accumulate(acc, row_max, row_sum, scores, values, PRECISION)

    if split == num_splits - 1:
        # No node sees a later one, so columns past the block's last node are left out.
        last_node = ((row_block + 1) * BLOCK_ROWS - 1) // GROUP
        columns = tl.minimum(last_node + 1, tree_nodes)
        for start in range(0, columns, BLOCK_SLOTS):
            other = start + column
            keys, values = load_masked(
                k_ptr, v_ptr, page_table_ptr, context_len + other, other < tree_nodes, dim, is_dim,
                stride_k_page, stride_k_slot, stride_v_page, stride_v_slot, PAGE_SIZE,
            )  # fmt: skip
            # BLOCK_SLOTS divides 64: one word holds a block's columns. Rows past the last see the
            # root, because a row that sees nothing has no maximum.
            bits = tl.load(ancestor_bits_ptr + node * words + start // 64, mask=is_row, other=1)
            visible = ((bits[:, None] >> (other % 64)[None, :].to(tl.int64)) & 1) != 0
            scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale_log2
            scores = tl.where(visible, scores, float("-inf"))
            acc, row_max, row_sum = accumulate(acc, row_max, row_sum, scores, values, PRECISION)

    heads = kv_heads * GROUP
    if IS_SPLIT:
        flat = (split.to(tl.int64) * num_nodes + node) * heads + head
        tl.store(max_ptr + flat, row_max, mask=is_row)
        tl.store(sum_ptr + flat, row_sum, mask=is_row)
        if tl.maximum(end - begin, split - num_splits + 2) > 0:  # it saw a slot, or holds the tree
            tl.store(
                partial_ptr + flat[:, None] * HEAD_DIM + dim, acc, mask=is_row[:, None] & is_dim
            )
    else:
        flat = node * heads + head
        result = (acc / row_sum[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + flat[:, None] * HEAD_DIM + dim, result, mask=is_row[:, None] & is_dim)


@triton.jit
def load_masked(
    k_ptr, v_ptr,
    page_table_ptr,
    slot, inside,  # [BLOCK_SLOTS]; a slot that is not inside reads as 0, whatever the memory holds
    dim, is_dim,
    stride_k_page, stride_k_slot, stride_v_page, stride_v_slot,
    PAGE_SIZE: tl.constexpr,
):  # fmt: skip
    page = tl.load(page_table_ptr + slot // PAGE_SIZE, mask=inside, other=0).to(tl.int64)
    row_in_page = (slot % PAGE_SIZE).to(tl.int64)
    k_row = page * stride_k_page + row_in_page * stride_k_slot
    v_row = page * stride_v_page + row_in_page * stride_v_slot
    mask = inside[:, None] & is_dim
    keys = tl.load(k_ptr + k_row[:, None] + dim, mask=mask, other=0.0)
    values = tl.load(v_ptr + v_row[:, None] + dim, mask=mask, other=0.0)
    return keys, values


@triton.jit
def accumulate(acc, row_max, row_sum, scores, values, PRECISION: tl.constexpr):
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    decay = tl.exp2(row_max - new_max)
    weights = tl.exp2(scores - new_max[:, None])
    row_sum = row_sum * decay + tl.sum(weights, 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * decay[:, None], input_precision=PRECISION)
    return acc, new_max, row_sum


@triton.jit
def merge_splits_kernel(
    out_ptr,  # [num_nodes, heads, HEAD_DIM]
    partial_ptr,  # [num_splits, num_nodes, heads, HEAD_DIM] float32
    max_ptr, sum_ptr,  # [num_splits, num_nodes, heads] float32
    indptr_ptr,  # [batch + 1] int32
    batch, num_nodes, heads, num_splits,
    HEAD_DIM: tl.constexpr, BLOCK_SPLITS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # node * heads + head
    if row // heads >= tl.load(indptr_ptr + batch):
        return
    split = tl.arange(0, BLOCK_SPLITS)
    dim = tl.arange(0, BLOCK_DIM)
    is_split = split < num_splits
    flat = split.to(tl.int64) * num_nodes * heads + row
    split_max = tl.load(max_ptr + flat, mask=is_split, other=float("-inf"))
    split_sum = tl.load(sum_ptr + flat, mask=is_split, other=0.0)
    # The split that holds the tree saw at least the root, so the maximum is finite.
    factor = tl.exp2(split_max - tl.max(split_max, 0))
    # Splits that saw nothing have written no partial result.
    saw_something = split_max > float("-inf")
    partial = tl.load(
        partial_ptr + flat[:, None] * HEAD_DIM + dim,
        mask=saw_something[:, None] & (dim < HEAD_DIM),
        other=0.0,
    )
    total = tl.sum(partial * factor[:, None], 0) / tl.sum(split_sum * factor, 0)
    tl.store(
        out_ptr + row * HEAD_DIM + dim, total.to(out_ptr.dtype.element_ty), mask=dim < HEAD_DIM
    )
