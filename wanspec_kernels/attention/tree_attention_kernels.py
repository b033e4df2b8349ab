"""Tree attention over a paged cache, context split across programs; and the merge of the splits."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
MAX_INT32 = tl.constexpr(2**31 - 1)


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
    depth_ptr,  # [num_nodes] int32
    sinks_ptr,  # [heads], or None
    k_scale_ptr, v_scale_ptr,  # [kv_heads] float32, or None
    window,  # positions a node sees, or None
    factor,  # of the scores: as `score` takes it, but for a key's scale
    cap_log2,  # the scores' cap times log2(e), or None
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

    ROWS_MAY_BE_EMPTY: tl.constexpr = window is not None
    ALIGNMENT: tl.constexpr = PAGE_SIZE if PAGE_SIZE < BLOCK_SLOTS else BLOCK_SLOTS

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
    if sinks_ptr is not None:
        is_counted = is_row & (split == num_splits - 1)
        sinks = tl.load(sinks_ptr + head, mask=is_counted, other=float("-inf"))
        row_max = sinks.to(tl.float32) * LOG2_E
        row_sum = tl.where(is_counted, 1.0, 0.0)
    if k_scale_ptr is not None:
        factor *= tl.load(k_scale_ptr + kv_head)

    low = 0
    if window is not None:
        depth = tl.load(depth_ptr + node, mask=is_row, other=0)
        first_seen = context_len + depth - window + 1
        # Pages that no row sees may be gone; a page that one does see is there, all of it.
        low = tl.maximum(tl.min(tl.where(is_row, first_seen, MAX_INT32), 0), 0)
        low = low // ALIGNMENT * ALIGNMENT
    blocks = tl.cdiv(tl.maximum(context_len - low, 0), BLOCK_SLOTS)
    share = tl.cdiv(blocks, num_splits) * BLOCK_SLOTS
    begin = low + split * share
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
        scores = score(query, keys, factor, cap_log2, PRECISION)
        if window is not None:
            scores = tl.where(slot[None, :] >= first_seen[:, None], scores, float("-inf"))
        acc, row_max, row_sum = accumulate(
            acc, row_max, row_sum, scores, values.to(query.dtype), PRECISION, ROWS_MAY_BE_EMPTY
        )

    if full_end < end:
        slot = full_end + column
        keys, values = load_masked(
            k_ptr, v_ptr, page_table_ptr, slot, slot < end, dim, is_dim,
            stride_k_page, stride_k_slot, stride_v_page, stride_v_slot, PAGE_SIZE,
        )  # fmt: skip
        scores = score(query, keys, factor, cap_log2, PRECISION)
        scores = tl.where((slot < end)[None, :], scores, float("-inf"))
        if window is not None:
            scores = tl.where(slot[None, :] >= first_seen[:, None], scores, float("-inf"))
        acc, row_max, row_sum = accumulate(
            acc, row_max, row_sum, scores, values.to(query.dtype), PRECISION, ROWS_MAY_BE_EMPTY
        )

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
            if window is not None:
                other_depth = tl.load(depth_ptr + first + other, mask=other < tree_nodes, other=0)
                visible &= other_depth[None, :] > depth[:, None] - window
            scores = score(query, keys, factor, cap_log2, PRECISION)
            scores = tl.where(visible, scores, float("-inf"))
            acc, row_max, row_sum = accumulate(
                acc, row_max, row_sum, scores, values.to(query.dtype), PRECISION, ROWS_MAY_BE_EMPTY
            )

    if v_scale_ptr is not None:
        acc *= tl.load(v_scale_ptr + kv_head)
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
def score(
    query, keys,
    factor,  # scale * log2(e); with a cap 2 * log2(e) * scale / cap
    cap_log2,  # or None
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores in powers of two."""
    scores = tl.dot(query, tl.trans(keys.to(query.dtype)), input_precision=PRECISION) * factor
    if cap_log2 is not None:
        # tanh(x) = 1 - 2 / (exp(2 x) + 1), which is -1 and 1 where exp under- and overflows.
        scores = cap_log2 - 2.0 * cap_log2 / (tl.exp2(scores) + 1.0)
    return scores


@triton.jit
def accumulate(
    acc, row_max, row_sum, scores, values,
    PRECISION: tl.constexpr,
    ROWS_MAY_BE_EMPTY: tl.constexpr,  # a row may have seen nothing yet, and see nothing here
):  # fmt: skip
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    shift = new_max
    if ROWS_MAY_BE_EMPTY:
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    decay = tl.exp2(row_max - shift)
    weights = tl.exp2(scores - shift[:, None])
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
