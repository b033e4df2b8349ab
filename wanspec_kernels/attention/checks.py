"""What `tree_attention` refuses."""

import torch
from torch import Tensor

from wanspec_kernels.attention.arguments import Scoring
from wanspec_kernels.tree import DraftTree

MAX_HEAD_DIM = 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FLOAT8 = torch.float8_e4m3fn
PAGE_SIZES = "16, 32, 64, ..."


def check_arguments(
    query: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    context_lens: Tensor,
    tree: DraftTree,
    scoring: Scoring,
) -> None:
    """Raises ValueError, with what was expected and what came."""
    _check_shapes(query, k_pages, v_pages, tree.num_nodes)
    check_slots(page_table, context_lens, tree.batch)
    _check_scoring(scoring, query, k_pages)
    quantised = k_pages.dtype == FLOAT8
    for name, pages in (("k_pages", k_pages), ("v_pages", v_pages)):
        expected = FLOAT8 if quantised else query.dtype
        if pages.dtype != expected:
            whose = "k_pages" if quantised else "query"
            raise ValueError(f"{name}: expected {expected} as {whose}, got {pages.dtype}")
    for name, tensor in (
        ("query", query),
        ("k_pages", k_pages),
        ("v_pages", v_pages),
    ):
        _check_stride(name, tensor)
    for name, tensor in (
        ("k_pages", k_pages),
        ("v_pages", v_pages),
        ("page_table", page_table),
        ("context_lens", context_lens),
        ("tree", tree.parents),
    ):
        if tensor.device != query.device:
            raise ValueError(f"{name}: expected on {query.device} as query, got {tensor.device}")


def _check_shapes(query: Tensor, k_pages: Tensor, v_pages: Tensor, num_nodes: int) -> None:
    if query.dim() != 3 or query.shape[0] != num_nodes:
        raise ValueError(f"query: expected [{num_nodes}, heads, dim], got {list(query.shape)}")
    if query.dtype not in DTYPES:
        raise ValueError(f"query: expected float32, float16 or bfloat16, got {query.dtype}")
    _, heads, dim = query.shape
    if k_pages.dim() != 4 or k_pages.shape[3] != dim or dim > MAX_HEAD_DIM:
        raise ValueError(
            f"k_pages: expected [num_pages, page_size, kv_heads, {dim}], dim at most "
            f"{MAX_HEAD_DIM}, got {list(k_pages.shape)}"
        )
    page_size, kv_heads = k_pages.shape[1:3]
    if not is_page_size(page_size):
        raise ValueError(f"k_pages: expected a page_size of {PAGE_SIZES}, got {page_size}")
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"query: expected a multiple of {kv_heads} heads, got {heads}")
    if v_pages.shape != k_pages.shape:
        raise ValueError(f"v_pages: expected {list(k_pages.shape)}, got {list(v_pages.shape)}")


def is_page_size(page_size: int) -> bool:
    """Whether kernels read pages of so many slots."""
    return page_size >= 16 and page_size & (page_size - 1) == 0


def check_slots(page_table: Tensor, context_lens: Tensor, batch: int) -> None:
    """Raises ValueError unless they are of `batch` requests."""
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
    _check_stride("page_table", page_table)
    _check_stride("context_lens", context_lens)


def _check_stride(name: str, tensor: Tensor) -> None:
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"{name}: expected stride 1 last, got {tensor.stride()}")


def _check_scoring(scoring: Scoring, query: Tensor, k_pages: Tensor) -> None:
    if scoring.window is not None and not 1 <= scoring.window < 1 << 31:
        raise ValueError(f"window: expected 1..{(1 << 31) - 1} positions, got {scoring.window}")
    if scoring.softcap is not None and not scoring.softcap > 0:
        raise ValueError(f"softcap: expected a positive number, got {scoring.softcap}")
    heads, kv_heads = query.shape[1], k_pages.shape[2]
    if scoring.sinks is not None:
        _check_vector("sinks", scoring.sinks, heads, (torch.float32, query.dtype), query.device)
    for name, scale in (("k_scale", scoring.k_scale), ("v_scale", scoring.v_scale)):
        if (scale is not None) != (k_pages.dtype == FLOAT8):
            given = "None" if scale is None else f"{list(scale.shape)}"
            expected = "None" if scale is not None else f"[{kv_heads}] float32"
            raise ValueError(f"{name}: expected {expected} for {k_pages.dtype} pages, got {given}")
        if scale is not None:
            _check_vector(name, scale, kv_heads, (torch.float32,), query.device)


def _check_vector(
    name: str, vector: Tensor, size: int, dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    same = vector.shape == (size,) and vector.device == device and vector.dtype in dtypes
    if not same or not vector.is_contiguous():
        raise ValueError(
            f"{name}: expected contiguous [{size}] {' or '.join(map(str, dict.fromkeys(dtypes)))} "
            f"on {device}, got {list(vector.shape)} {vector.dtype} on {vector.device}"
        )
