"""Batches of random trees over paged contexts, for the benchmarks of tree attention."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.conftest import random_tree
from wanspec_kernels.attention import tree_attention
from wanspec_kernels.attention.reference import visible_slots
from wanspec_kernels.tree import DraftTree


@dataclass(frozen=True)
class Layout:
    """Of one layer's attention, and of its cache."""

    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    page_size: int = 16
    dtype: torch.dtype = torch.bfloat16


@dataclass(frozen=True)
class AttentionCase:
    """One call of `tree_attention`; all tensors on one device."""

    nodes: list[int]  # of each tree
    contexts: list[int]
    tree: DraftTree
    query: Tensor
    k_pages: Tensor
    v_pages: Tensor
    page_table: Tensor
    context_lens: Tensor

    def attend(self, backend: str) -> Tensor:
        return tree_attention(
            self.query,
            self.k_pages,
            self.v_pages,
            self.page_table,
            self.context_lens,
            self.tree,
            backend=backend,
        )

    @property
    def slots(self) -> list[int]:
        return [c + n for c, n in zip(self.contexts, self.nodes, strict=True)]

    @property
    def bytes_read(self) -> int:
        """Keys and values, each once."""
        entry = self.k_pages[0, 0]
        return sum(self.slots) * 2 * entry.numel() * entry.element_size()

    @property
    def operations(self) -> int:
        """Of both products."""
        _, heads, dim = self.query.shape
        return sum(4 * heads * n * s * dim for n, s in zip(self.nodes, self.slots, strict=True))

    def visible(self, b: int) -> Tensor:
        """[nodes, slots] bool of tree b: the whole context, ancestors and the node itself."""
        rows = slice(sum(self.nodes[:b]), sum(self.nodes[: b + 1]))
        tree = self.tree
        return visible_slots(tree.ancestor_bits[rows], tree.depth[rows], self.contexts[b], None)


def make_case(
    nodes: list[int],
    contexts: list[int],
    device: torch.device,
    seed: int = 0,
    kind: str = "random",
    layout: Layout = Layout(),
) -> AttentionCase:
    """`kind`: "random" (as best-first growth gives), "chain" or "star". On a CPU in float32."""
    host = random.Random(seed)
    trees = []
    for b, n in enumerate(nodes):
        tokens, parents = random_tree(n, 4096, seed * 10_007 + b)
        if kind == "chain":
            parents = list(range(-1, n - 1))
        elif kind == "star":
            parents = [-1] + [0] * (n - 1)
        trees.append((tokens, parents))
    tree = DraftTree.build(trees, device)
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        dtype = layout.dtype if device.type == "cuda" else torch.float32
        return torch.randn(shape, device=device, generator=generator).to(dtype)

    counts = [-(-(c + n) // layout.page_size) for c, n in zip(contexts, nodes, strict=True)]
    order = list(range(sum(counts)))
    host.shuffle(order)
    table = torch.full((len(nodes), max(counts)), -1, dtype=torch.int32)
    for b, count in enumerate(counts):
        table[b, :count] = torch.tensor([order.pop() for _ in range(count)])
    pages = (sum(counts), layout.page_size, layout.kv_heads, layout.dim)
    return AttentionCase(
        nodes,
        contexts,
        tree,
        normal(sum(nodes), layout.heads, layout.dim),
        normal(*pages),
        normal(*pages),
        table.to(device),
        torch.tensor(contexts, dtype=torch.int32).to(device),
    )
