"""The public function: checks, choice of a backend, and the operator behind it."""

from collections.abc import Callable

import torch
from torch import Tensor

from wanspec_kernels.attention.arguments import Scoring, Trees
from wanspec_kernels.attention.checks import check_arguments
from wanspec_kernels.attention.cuda import cuda_lacks, is_small, tree_attention_cuda
from wanspec_kernels.attention.reference import tree_attention_reference
from wanspec_kernels.attention.sdpa import tree_attention_sdpa
from wanspec_kernels.backend import choose_backend
from wanspec_kernels.tree import DraftTree

Backend = Callable[[Tensor, Tensor, Tensor, Trees, Scoring], Tensor]


def tree_attention(
    query: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    context_lens: Tensor,
    tree: DraftTree,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention of every node to its request's context, its ancestors and itself.

    Keys and values lie in pages: slot s of request b is row ``s % page_size`` of page
    ``page_table[b, s // page_size]``. Slots below ``context_lens[b]`` hold the context; node i of
    tree b, its root included, has slot ``context_lens[b] + i``, already written. The scores are
    softmaxed in float32. Nothing waits for the device with backends "cuda" and "triton". Derived
    from Miao et al. 2023 (tree attention) and Dao et al. 2023 (splitting the context).

    Args:
        query: [num_nodes, heads, dim] bf16, fp16 or fp32, rows as ``tree.indptr`` says, any strides
            but 1 in the last dimension. Heads of one group stand side by side.
        k_pages: [num_pages, page_size, kv_heads, dim] as `query`, or float8_e4m3fn; page_size a
            power of two from 16 on, heads a multiple of kv_heads, dim at most 256; any strides but
            1 in the last dimension.
        v_pages: as `k_pages`.
        page_table: [batch, max_pages] int32. Entries past the last slot in use are not read, nor
            are those of pages that a window leaves wholly behind the root.
        context_lens: [batch] int32.
        tree: the batch of trees, on the same device.
        scale: factor of the scores, ``dim ** -0.5`` if None.
        window: a node sees this many positions up to its own, as transformers' sliding windows
            count them. Slot s of the context has position s, a node ``context_lens[b] + depth``.
        softcap: scores become ``softcap * tanh(scores / softcap)`` (Gemma 2).
        sinks: [heads] float32 or as `query`: one more logit in each head's denominator (gpt-oss).
        k_scale: [kv_heads] float32, with float8 pages and only there: a key is what is stored times
            the scale of its head. v_scale alike.
        backend: "cuda" (needs compute capability 9.0 and the extension; bf16 or fp16, dim 64, 128
            or 256, pages of up to 256 slots, no option but `scale`), "triton" (float8 needs compute
            capability 8.9), "sdpa" or "reference" (float64). "auto" takes "cuda" where it serves,
            but not for a few trees of a few nodes; else "triton" on CUDA, "sdpa" elsewhere.

    Returns:
        [num_nodes, heads, dim], contiguous, of the dtype of `query`. Rows of padding are undefined.

    Raises:
        ValueError: a shape, dtype, device, option or the backend is not as above.
        RuntimeError: the backend cannot run here.

    Example, one root after two slots of context:

        >>> pages = torch.zeros(1, 16, 2, 8)
        >>> tree = DraftTree.build([([5], [-1])])
        >>> table, lens = torch.zeros(1, 1).int(), torch.tensor([2]).int()
        >>> tree_attention(torch.ones(1, 4, 8), pages, pages, table, lens, tree).shape
        torch.Size([1, 4, 8])
    """
    if scale is None:
        scale = query.shape[-1] ** -0.5
    scoring = Scoring(scale, window, softcap, sinks, k_scale, v_scale)
    check_arguments(query, k_pages, v_pages, page_table, context_lens, tree, scoring)

    def lack() -> str | None:
        if backend == "auto" and is_small(query, k_pages, tree):
            return "slower for so little"
        return cuda_lacks(query, k_pages, v_pages, scoring)

    chosen = choose_backend(
        "tree_attention", backend, query.device, ("sdpa", "reference"), cuda_lacks=lack
    )
    result: Tensor = torch.ops.wanspec.tree_attention(
        query,
        k_pages,
        v_pages,
        page_table,
        context_lens,
        tree.indptr,
        tree.ancestor_bits,
        tree.depth,
        tree.max_nodes,
        scale,
        window,
        softcap,
        sinks,
        k_scale,
        v_scale,
        chosen,
    )
    return result


torch.library.define(
    "wanspec::tree_attention",
    "(Tensor query, Tensor k_pages, Tensor v_pages, Tensor page_table, Tensor context_lens, "
    "Tensor indptr, Tensor ancestor_bits, Tensor depth, int max_nodes, float scale, int? window, "
    "float? softcap, Tensor? sinks, Tensor? k_scale, Tensor? v_scale, str backend) -> Tensor",
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
    depth: Tensor,
    max_nodes: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    backend: str,
) -> Tensor:
    trees = Trees(page_table, context_lens, indptr, ancestor_bits, depth, max_nodes)
    scoring = Scoring(scale, window, softcap, sinks, k_scale, v_scale)
    return _implementation(backend)(query, k_pages, v_pages, trees, scoring)


@torch.library.register_fake("wanspec::tree_attention")
def _fake(query: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape)


def _implementation(backend: str) -> Backend:
    if backend == "cuda":
        return tree_attention_cuda
    if backend == "triton":
        from wanspec_kernels.attention.launch import launch_tree_attention

        return launch_tree_attention
    return tree_attention_sdpa if backend == "sdpa" else tree_attention_reference
