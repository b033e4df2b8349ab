"""Random batches of trees over paged caches whose unused memory is NaN."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wanspec_kernels.tree import DraftTree


def random_parents(size: int, rng: random.Random) -> list[int]:
    reach = rng.choice((1, 3, size))  # how far back a parent may lie; 1 is a chain
    return [-1] + [rng.randrange(max(0, i - reach), i) for i in range(1, size)]


def random_trees(sizes: Sequence[int], rng: random.Random, vocab: int = 100) -> DraftTree:
    return DraftTree.build(
        [([rng.randrange(vocab) for _ in range(n)], random_parents(n, rng)) for n in sizes]
    )


def to_device(tree: DraftTree, device: str) -> DraftTree:
    tensors = (tree.token_ids.to(device), tree.parents.to(device), tree.indptr.to(device))
    return DraftTree(*tensors, tree.max_nodes, tree.max_depth)


@dataclass
class Paged:
    """`k_pages` and `v_pages` of one layer; slots past context and tree, and unowned pages, are
    NaN."""

    k_pages: Tensor
    v_pages: Tensor
    page_table: Tensor  # -1 past the last page, one column more than anyone needs
    context_lens: Tensor

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (
            self.k_pages.to(device),
            self.v_pages.to(device),
            self.page_table.to(device),
            self.context_lens.to(device),
        )


def random_pages(
    context_lens: Sequence[int],
    tree_sizes: Sequence[int],
    *,
    page_size: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    seed: int,
) -> Paged:
    generator = torch.Generator().manual_seed(seed)
    slots = [c + n for c, n in zip(context_lens, tree_sizes, strict=True)]
    counts = [-(-s // page_size) for s in slots]
    num_pages = sum(counts) + 2
    order = torch.randperm(num_pages, generator=generator).tolist()
    shape = (num_pages, page_size, kv_heads, dim)
    k_pages, v_pages = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
    table = torch.full((len(slots), max(counts) + 1), -1, dtype=torch.int32)
    for b, (count, used) in enumerate(zip(counts, slots, strict=True)):
        for p in range(count):
            page = order.pop()
            table[b, p] = page
            filled = min(used - p * page_size, page_size)
            for pages in (k_pages, v_pages):
                pages[page, :filled] = torch.randn(filled, kv_heads, dim, generator=generator)
    lens = torch.tensor(context_lens, dtype=torch.int32)
    return Paged(k_pages.to(dtype), v_pages.to(dtype), table, lens)
