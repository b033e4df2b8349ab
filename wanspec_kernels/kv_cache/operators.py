"""Writing a tree's keys and values into pages, and moving the accepted ones into place.

The pages may be an engine's own; nothing but the slots named here is touched.
"""

import torch
from torch import Tensor

from wanspec_kernels.backend import choose_backend
from wanspec_kernels.kv_cache.reference import compact_reference, write_reference
from wanspec_kernels.tree import DraftTree

QUANTISED_FROM = (torch.bfloat16, torch.float16, torch.float32)


def write(
    k_pages: Tensor,
    v_pages: Tensor,
    keys: Tensor,
    values: Tensor,
    tree: DraftTree,
    context_lens: Tensor,
    page_table: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Put node i of tree b, its root included, into slot ``context_lens[b] + i``.

    Slots for which `page_table` has no page are left out. Nothing waits for the device on CUDA.

    Args:
        k_pages: [num_pages, page_size, kv_heads, dim], changed in place; v_pages alike.
        keys: [num_nodes, kv_heads, dim] of the same dtype, or to be quantised; with its positions
            already rotated in, stride 1 in the last dimension; values alike.
        tree: the batch of trees.
        context_lens: [batch] int32.
        page_table: [batch, max_pages] int32, -1 where there is no page.
        k_scale: [kv_heads] float32, with float8_e4m3fn pages and keys of bf16, fp16 or fp32: what
            is stored is the key over the scale of its head, rounded to nearest, at most 448
            either way. Both scales or neither.
        v_scale: as `k_scale`.
        backend: "triton" ("auto" on CUDA; to quantise it needs compute capability 8.9) or
            "reference".

    Raises:
        ValueError: a shape, dtype, device or the backend is not as above.
        RuntimeError: the backend cannot run here.
    """
    dtypes: tuple[torch.dtype, ...] = (k_pages.dtype,)
    if k_scale is not None or v_scale is not None:
        _check_scales(k_pages, k_scale, v_scale)
        dtypes = QUANTISED_FROM
    expected = (tree.num_nodes, *k_pages.shape[2:])
    for name, entries in (("keys", keys), ("values", values)):
        if entries.shape != expected or entries.dtype not in dtypes:
            raise ValueError(
                f"{name}: expected {list(expected)} {' or '.join(map(str, dtypes))}, "
                f"got {list(entries.shape)} {entries.dtype}"
            )
        if entries.stride(-1) != 1 and entries.shape[-1] > 1:
            raise ValueError(f"{name}: expected stride 1 last, got {entries.stride()}")
        if entries.device != k_pages.device:
            raise ValueError(f"{name}: expected on {k_pages.device}, got {entries.device}")
    _check_pages(k_pages, v_pages, context_lens, page_table, tree.batch, num_dims=4)
    chosen = choose_backend("kv_cache.write", backend, k_pages.device)
    torch.ops.wanspec.kv_cache_write(
        k_pages,
        v_pages,
        keys,
        values,
        tree.indptr,
        context_lens,
        page_table,
        k_scale,
        v_scale,
        tree.max_nodes,
        chosen,
    )


def compact(
    k_pages: Tensor,
    v_pages: Tensor,
    accepted_nodes: Tensor,
    num_accepted: Tensor,
    context_lens: Tensor,
    page_table: Tensor,
    *,
    backend: str = "auto",
) -> None:
    """Move accepted nodes' entries of all layers to the end of their contexts, in place.

    The d-th accepted node of request b goes from slot ``context_lens[b] + accepted_nodes[b, d -
    1]`` to slot ``context_lens[b] + d``, d from 1 to ``num_accepted[b]``; the root is in place
    already. A node's index is at least its depth, so no source lies before its destination. An
    index that cannot be (below its depth, or without a page) moves nothing. Nothing waits for the
    device on CUDA.

    Args:
        k_pages: [num_layers, num_pages, page_size, kv_heads, dim], changed in place; v_pages alike.
        accepted_nodes: [batch, max_depth] int32, indices within the tree; not read past
            num_accepted.
        num_accepted: [batch] int32.
        context_lens: [batch] int32, as it was when the tree was written.
        page_table: [batch, max_pages] int32, -1 where there is no page.
        backend: "triton" ("auto" on CUDA) or "reference".

    Raises:
        ValueError: a shape, dtype, device or the backend is not as above.
        RuntimeError: the backend cannot run here.
    """
    batch = num_accepted.shape[0]
    if accepted_nodes.dim() != 2 or accepted_nodes.shape[0] != batch:
        raise ValueError(
            f"accepted_nodes: expected [{batch}, max_depth], got {list(accepted_nodes.shape)}"
        )
    for name, tensor in (("accepted_nodes", accepted_nodes), ("num_accepted", num_accepted)):
        if tensor.dtype != torch.int32 or tensor.device != k_pages.device:
            raise ValueError(
                f"{name}: expected int32 on {k_pages.device}, got {tensor.dtype} on {tensor.device}"
            )
    _check_pages(k_pages, v_pages, context_lens, page_table, batch, num_dims=5)
    chosen = choose_backend("kv_cache.compact", backend, k_pages.device)
    torch.ops.wanspec.kv_cache_compact(
        k_pages, v_pages, accepted_nodes, num_accepted, context_lens, page_table, chosen
    )


torch.library.define(
    "wanspec::kv_cache_write",
    "(Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor keys, Tensor values, Tensor indptr, "
    "Tensor context_lens, Tensor page_table, Tensor? k_scale, Tensor? v_scale, int max_nodes, "
    "str backend) -> ()",
)
torch.library.define(
    "wanspec::kv_cache_compact",
    "(Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor accepted_nodes, Tensor num_accepted, "
    "Tensor context_lens, Tensor page_table, str backend) -> ()",
)


@torch.library.impl("wanspec::kv_cache_write", "CompositeExplicitAutograd")
def _write(
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
    backend: str,
) -> None:
    places = (indptr, context_lens, page_table, k_scale, v_scale)
    if backend == "triton":
        from wanspec_kernels.kv_cache.launch import launch_write

        launch_write(k_pages, v_pages, keys, values, *places, max_nodes)
    else:
        write_reference(k_pages, v_pages, keys, values, *places)


@torch.library.impl("wanspec::kv_cache_compact", "CompositeExplicitAutograd")
def _compact(
    k_pages: Tensor,
    v_pages: Tensor,
    accepted_nodes: Tensor,
    num_accepted: Tensor,
    context_lens: Tensor,
    page_table: Tensor,
    backend: str,
) -> None:
    moves = (accepted_nodes, num_accepted, context_lens, page_table)
    if backend == "triton":
        from wanspec_kernels.kv_cache.launch import launch_compact

        launch_compact(k_pages, v_pages, *moves)
    else:
        compact_reference(k_pages, v_pages, *moves)


@torch.library.register_fake("wanspec::kv_cache_write")
@torch.library.register_fake("wanspec::kv_cache_compact")
def _fake(*_: object) -> None:
    return None


def _check_scales(k_pages: Tensor, k_scale: Tensor | None, v_scale: Tensor | None) -> None:
    if k_pages.dtype != torch.float8_e4m3fn:
        raise ValueError(f"k_scale: expected None for {k_pages.dtype} pages")
    kv_heads = k_pages.shape[2]
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if scale is None or scale.shape != (kv_heads,) or scale.dtype != torch.float32:
            got = None if scale is None else f"{list(scale.shape)} {scale.dtype}"
            raise ValueError(f"{name}: expected [{kv_heads}] torch.float32, got {got}")
        if scale.device != k_pages.device or not scale.is_contiguous():
            raise ValueError(f"{name}: expected contiguous on {k_pages.device}")


def _check_pages(
    k_pages: Tensor,
    v_pages: Tensor,
    context_lens: Tensor,
    page_table: Tensor,
    batch: int,
    num_dims: int,
) -> None:
    if k_pages.dim() != num_dims or 0 in k_pages.shape:
        raise ValueError(
            f"k_pages: expected {num_dims} dimensions, none empty, got {list(k_pages.shape)}"
        )
    if v_pages.shape != k_pages.shape or v_pages.dtype != k_pages.dtype:
        raise ValueError(
            f"v_pages: expected {list(k_pages.shape)} {k_pages.dtype}, "
            f"got {list(v_pages.shape)} {v_pages.dtype}"
        )
    if k_pages.stride(-1) != 1 or v_pages.stride(-1) != 1:
        raise ValueError(
            f"k_pages, v_pages: expected stride 1 last, got {k_pages.stride()}, {v_pages.stride()}"
        )
    if context_lens.shape != (batch,) or context_lens.dtype != torch.int32:
        raise ValueError(
            f"context_lens: expected [{batch}] int32, "
            f"got {list(context_lens.shape)} {context_lens.dtype}"
        )
    shape = page_table.shape
    if page_table.dim() != 2 or shape[0] != batch or page_table.dtype != torch.int32:
        raise ValueError(
            f"page_table: expected [{batch}, max_pages] int32, got {list(shape)} {page_table.dtype}"
        )
    for name, tensor in (
        ("v_pages", v_pages),
        ("context_lens", context_lens),
        ("page_table", page_table),
    ):
        if tensor.device != k_pages.device:
            raise ValueError(f"{name}: expected on {k_pages.device}, got {tensor.device}")
