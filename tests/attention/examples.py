"""Batches of trees over paged contexts, and attention of any backend over them."""

import random
from typing import Any

import torch
from torch import Tensor

from tests.paged_trees import Paged, random_pages, random_trees, to_device
from wanspec_kernels.attention import tree_attention
from wanspec_kernels.attention.arguments import Trees
from wanspec_kernels.tree import DraftTree

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
INTERPRETED = (torch.float32, torch.float16)


def example(
    context_lens: list[int],
    sizes: list[int],
    *,
    page_size: int = 16,
    kv_heads: int = 2,
    group: int = 3,
    dim: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Tensor, Paged, DraftTree]:
    tree = random_trees(sizes, random.Random(seed))
    paged = random_pages(
        context_lens, sizes, page_size=page_size, kv_heads=kv_heads, dim=dim, dtype=dtype, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(sum(sizes), kv_heads * group, dim, generator=generator).to(dtype)
    return query, paged, tree


def attention(
    query: Tensor,
    paged: Paged,
    tree: DraftTree,
    backend: str,
    device: str = "cpu",
    **options: Any,
) -> Tensor:
    """On the CPU again; `options` are those of `tree_attention`, tensors on any device."""
    k_pages, v_pages, page_table, context_lens = paged.tensors(device)
    return tree_attention(
        query.to(device),
        k_pages,
        v_pages,
        page_table,
        context_lens,
        to_device(tree, device),
        backend=backend,
        **on_device(options, device),
    ).cpu()


def launch_arguments(
    query: Tensor, paged: Paged, tree: DraftTree, device: str
) -> tuple[Tensor, Tensor, Tensor, Trees]:
    """What every backend takes first."""
    tree = to_device(tree, device)
    k_pages, v_pages, *slots = paged.tensors(device)
    trees = Trees(*slots, tree.indptr, tree.ancestor_bits, tree.depth, tree.max_nodes)
    return query.to(device), k_pages, v_pages, trees


def on_device(options: dict[str, Any], device: str) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}


def assert_near(actual: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    tolerance = TOLERANCE[actual.dtype] * factor
    torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)
