"""The CUDA kernels of tree attention: what they serve, and their call."""

import torch
from torch import Tensor

from wanspec_kernels.attention.arguments import Scoring, Trees
from wanspec_kernels.extension import has_cuda_extension, is_hopper
from wanspec_kernels.tree import DraftTree

MAX_GROUP = 16
MAX_PAGE_SIZE = 256
# Where Triton's kernel is faster: few rows, (node, head of the group), of a tree and a kv head, and
# few such items. On an H100, one node of four heads after 2,048 slots: 12 against 16 µs for one
# request of 8 kv heads, 33 against 40 for eight, but 210 against 195 for 64.
FEW_ROWS = 16
FEW_ITEMS = 128
ALIGNMENT = 8  # elements: what the copy engine reads begins at multiples of 16 bytes


def cuda_lacks(query: Tensor, k_pages: Tensor, v_pages: Tensor, scoring: Scoring) -> str | None:
    """Why the kernels cannot run; None if they can."""
    if query.device.type != "cuda":
        return f"expected tensors on cuda, got {query.device}"
    if not is_hopper(query.device.index):
        return "expected a GPU of compute capability 9.0"
    if not has_cuda_extension():
        return "the CUDA extension wanspec_kernels._C is not built"
    if query.dtype not in (torch.bfloat16, torch.float16):
        return f"expected a query of bfloat16 or float16, got {query.dtype}"
    if k_pages.dtype != query.dtype:
        return f"expected pages of {query.dtype} as query, got {k_pages.dtype}"
    for name in ("window", "softcap", "sinks"):
        if getattr(scoring, name) is not None:
            return f"expected no {name}"
    if not scoring.scale > 0:
        return f"expected a positive scale, got {scoring.scale}"
    (_, heads, dim), (_, page_size, kv_heads, _) = query.shape, k_pages.shape
    if dim not in (64, 128, 256):
        return f"expected a dim of 64, 128 or 256, got {dim}"
    if page_size > MAX_PAGE_SIZE:
        return f"expected a page_size of {MAX_PAGE_SIZE} at most, got {page_size}"
    if heads // kv_heads > MAX_GROUP:
        return f"expected at most {MAX_GROUP} heads a kv_head, got {heads // kv_heads}"
    for name, tensor in (("query", query), ("k_pages", k_pages), ("v_pages", v_pages)):
        if any(n % ALIGNMENT for n in (*tensor.stride()[:-1], tensor.storage_offset())):
            return (
                f"{name}: expected strides and an offset in multiples of {ALIGNMENT} elements, got "
                f"{tensor.stride()} and {tensor.storage_offset()}"
            )
    for name, pages in (("k_pages", k_pages), ("v_pages", v_pages)):
        if kv_heads > 1 and pages.stride(2) % 64:
            return f"{name}: expected heads a multiple of 64 elements apart, got {pages.stride(2)}"
    return None


def is_small(query: Tensor, k_pages: Tensor, tree: DraftTree) -> bool:
    """There is so little to do that "auto" leaves it to Triton."""
    kv_heads = k_pages.shape[2]
    rows = tree.max_nodes * (query.shape[1] // kv_heads)
    return rows <= FEW_ROWS and tree.batch * kv_heads <= FEW_ITEMS


def tree_attention_cuda(
    query: Tensor, k_pages: Tensor, v_pages: Tensor, trees: Trees, scoring: Scoring
) -> Tensor:
    result: Tensor = torch.ops.wanspec.tree_attention_cuda(
        query,
        k_pages,
        v_pages,
        trees.page_table,
        trees.context_lens,
        trees.indptr,
        trees.ancestor_bits,
        trees.max_nodes,
        scoring.scale,
    )
    return result
