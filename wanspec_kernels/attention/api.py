"""The public function: checks, choice of a backend, and the operator behind it."""

import torch
from torch import Tensor

from wanspec_kernels.attention.reference import tree_attention_reference
from wanspec_kernels.attention.sdpa import tree_attention_sdpa
from wanspec_kernels.backend import choose_backend
from wanspec_kernels.tree import DraftTree

MAX_HEAD_DIM = 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def tree_attention(
    query: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    context_lens: Tensor,
    tree: DraftTree,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of every node to its request's context, its ancestors and itself.

    Keys and values lie in pages: slot s of request b is row ``s % page_size`` of page
    ``page_table[b, s // page_size]``. Slots below ``context_lens[b]`` hold the context; node i of
    tree b, its root included, has slot ``context_lens[b] + i``, already written. The scores are
    softmaxed in float32. Nothing waits for the device with backend "triton". Derived from Miao et
    al. 2023 (tree attention) and Dao et al. 2023 (splitting the context).

    Args:
        query: [num_nodes, heads, dim] bf16, fp16 or fp32, rows as ``tree.indptr`` says, any strides
            but 1 in the last dimension. Heads of one group stand side by side.
        k_pages: [num_pages, page_size, kv_heads, dim] as `query`; page_size a power of two from 16
            on, heads a multiple of kv_heads, dim at most 256; any strides but 1 in the last
            dimension.
        v_pages: as `k_pages`.
        page_table: [batch, max_pages] int32. Entries past the last slot in use are not read.
        context_lens: [batch] int32.
        tree: the batch of trees, on the same device.
        scale: factor of the scores, ``dim ** -0.5`` if None.
        backend: "triton" (what "auto" takes on CUDA), "sdpa" (elsewhere), or "reference" (float64).

    Returns:
        [num_nodes, heads, dim], contiguous, of the dtype of `query`. Rows of padding are undefined.

    Raises:
        ValueError: a shape, dtype, device or the backend is not as above.
        RuntimeError: the backend cannot run here.

    Example, one root after two slots of context:

        >>> pages = torch.zeros(1, 16, 2, 8)
        >>> tree = DraftTree.build([([5], [-1])])
        >>> table, lens = torch.zeros(1, 1).int(), torch.tensor([2]).int()
        >>> tree_attention(torch.ones(1, 4, 8), pages, pages, table, lens, tree).shape
        torch.Size([1, 4, 8])
    """
    _check(query, k_pages, v_pages, page_table, context_lens, tree)
    chosen = choose_backend("tree_attention", backend, query.device, ("sdpa", "reference"))
    result: Tensor = torch.ops.wanspec.tree_attention(
        query,
        k_pages,
        v_pages,
        page_table,
        context_lens,
        tree.indptr,
        tree.ancestor_bits,
        tree.max_nodes,
        query.shape[2] ** -0.5 if scale is None else scale,
        chosen,
    )
    return result


torch.library.define(
    "wanspec::tree_attention",
    "(Tensor query, Tensor k_pages, Tensor v_pages, Tensor page_table, Tensor context_lens, "
    "Tensor indptr, Tensor ancestor_bits, int max_nodes, float scale, str backend) -> Tensor",
)


@torch.library.impl("wanspec::tree_attention", "CompositeExplicitAutograd")
def _run(
    query: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    context_lens: Tensor,
    indptr: Tensor,
    ancestor_bits: Tensor,
    max_nodes: int,
    scale: float,
    backend: str,
) -> Tensor:
    batch_of_trees = (page_table, context_lens, indptr, ancestor_bits)
    if backend == "triton":
        if query.device.type == "cpu" and query.dtype == torch.bfloat16:
            raise RuntimeError("tree_attention: Triton's interpreter cannot multiply bfloat16")
        from wanspec_kernels.attention.launch import launch_tree_attention

        return launch_tree_attention(query, k_pages, v_pages, *batch_of_trees, max_nodes, scale)
    run = tree_attention_sdpa if backend == "sdpa" else tree_attention_reference
    return run(query, k_pages, v_pages, *batch_of_trees, scale)


@torch.library.register_fake("wanspec::tree_attention")
def _fake(query: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape)


def _check(
    query: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    context_lens: Tensor,
    tree: DraftTree,
) -> None:
    if query.dim() != 3 or query.shape[0] != tree.num_nodes:
        raise ValueError(f"query: expected [{tree.num_nodes}, heads, dim], got {list(query.shape)}")
    if query.dtype not in DTYPES:
        raise ValueError(f"query: expected float32, float16 or bfloat16, got {query.dtype}")
    _, heads, dim = query.shape
    if k_pages.dim() != 4 or k_pages.shape[3] != dim or dim > MAX_HEAD_DIM:
        raise ValueError(
            f"k_pages: expected [num_pages, page_size, kv_heads, {dim}], dim at most "
            f"{MAX_HEAD_DIM}, got {list(k_pages.shape)}"
        )
    page_size, kv_heads = k_pages.shape[1:3]
    if page_size < 16 or page_size & (page_size - 1):
        raise ValueError(f"k_pages: expected a page_size of 16, 32, 64, ..., got {page_size}")
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"query: expected a multiple of {kv_heads} heads, got {heads}")
    if v_pages.shape != k_pages.shape:
        raise ValueError(f"v_pages: expected {list(k_pages.shape)}, got {list(v_pages.shape)}")
    if context_lens.shape != (tree.batch,) or context_lens.dtype != torch.int32:
        raise ValueError(
            f"context_lens: expected [{tree.batch}] int32, "
            f"got {list(context_lens.shape)} {context_lens.dtype}"
        )
    shape = page_table.shape
    if page_table.dim() != 2 or shape[0] != tree.batch or page_table.dtype != torch.int32:
        raise ValueError(
            f"page_table: expected [{tree.batch}, max_pages] int32, "
            f"got {list(shape)} {page_table.dtype}"
        )
    for name, pages in (("k_pages", k_pages), ("v_pages", v_pages)):
        if pages.dtype != query.dtype:
            raise ValueError(f"{name}: expected {query.dtype} as query, got {pages.dtype}")
    for name, tensor in (
        ("query", query),
        ("k_pages", k_pages),
        ("v_pages", v_pages),
        ("page_table", page_table),
        ("context_lens", context_lens),
    ):
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name}: expected stride 1 last, got {tensor.stride()}")
    for name, tensor in (
        ("k_pages", k_pages),
        ("v_pages", v_pages),
        ("page_table", page_table),
        ("context_lens", context_lens),
        ("tree", tree.parents),
    ):
        if tensor.device != query.device:
            raise ValueError(f"{name}: expected on {query.device} as query, got {tensor.device}")
