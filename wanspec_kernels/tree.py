"""DraftTree: a ragged batch of token trees, laid out as the kernels read it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wanspec_kernels.extension import has_cuda_extension

MAX_NODES = 1024  # of one tree


@dataclass(frozen=True, slots=True)
class Expansion:
    """What one source drew at one node, in order, and what it drew from.

    The distribution is exactly ``weights / sum(weights)`` over `token_ids`: sparse, and quantised
    before anything was drawn from it. Several draws may name one child.
    """

    parent: int  # node the draws hang from
    children: tuple[int, ...]  # node of each draw
    token_ids: tuple[int, ...]  # support
    weights: tuple[int, ...]  # 1..65535 each


@dataclass(frozen=True, slots=True)
class HostTree:
    """One tree on the host, node 0 its root, as it travels between pool and target.

    It says by which rule it is verified: `match` if `expansions` is None, else `rejection`.
    """

    token_ids: tuple[int, ...]
    parents: tuple[int, ...]
    expansions: tuple[Expansion, ...] | None = None  # at one node in order of arrival
    replacement: bool = False  # of their draws


@dataclass(frozen=True)
class DraftTree:
    """A batch of trees. Node 0 of each is the root, the last committed token.

    Row i of the target's logits scores the token that follows node i. All tensors are int32 on one
    device. Rows past ``indptr[-1]`` are padding (a captured graph has a fixed capacity): parent -1,
    and no kernel reads them. ``max_nodes`` and ``max_depth`` are host-side bounds, so that nothing
    has to wait for the device; they may be larger than this batch needs, never smaller.

    `build` checks values too. The constructor takes an engine's own tensors and raises ValueError
    unless each is contiguous, int32 and of the shape below; values it must trust. Derived fields
    are computed at first use and kept: for a graph whose trees change between replays, construct
    the DraftTree over its static tensors inside the capture.
    """

    token_ids: Tensor  # [num_nodes]
    parents: Tensor  # [num_nodes], index within the same tree, -1 at the root, parents[i] < i
    indptr: Tensor  # [batch + 1], tree b owns rows indptr[b]:indptr[b + 1]
    max_nodes: int  # of any one tree
    max_depth: int  # of any one tree; the root has depth 0

    def __post_init__(self) -> None:
        device, rows = self.device, self.token_ids.numel()
        for name, tensor, size in (
            ("token_ids", self.token_ids, rows),
            ("parents", self.parents, rows),
            ("indptr", self.indptr, max(self.indptr.numel(), 1)),
        ):
            same = tensor.shape == (size,) and tensor.device == device
            if not same or tensor.dtype != torch.int32 or not tensor.is_contiguous():
                raise ValueError(
                    f"{name}: expected contiguous [{size}] torch.int32 on {device}, got strides "
                    f"{tensor.stride()} of {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
                )

    @classmethod
    def build(
        cls,
        trees: Sequence[tuple[Sequence[int], Sequence[int]]],
        device: torch.device | str = "cpu",
    ) -> "DraftTree":
        """Lay out ``(token_ids, parents)`` pairs, checked here so that kernels may trust them.

        >>> tree = DraftTree.build([([7, 8, 9, 8], [-1, 0, 0, 1])])
        >>> tree.depth.tolist()
        [0, 1, 1, 2]

        Raises:
            ValueError: a tree is empty, larger than MAX_NODES, or its parents are not in order.
        """
        token_ids: list[int] = []
        parents: list[int] = []
        indptr = [0]
        max_depth = 0
        for b, (tokens, tree_parents) in enumerate(trees):
            max_depth = max(max_depth, _check(b, tokens, tree_parents))
            token_ids += tokens
            parents += tree_parents
            indptr.append(len(token_ids))
        # One transfer for all three.
        packed = torch.tensor(token_ids + parents + indptr, dtype=torch.int32).to(device)
        tokens_on, parents_on, indptr_on = packed.split([len(token_ids), len(parents), len(indptr)])
        max_nodes = max((len(tokens) for tokens, _ in trees), default=1)
        return cls(tokens_on, parents_on, indptr_on, max_nodes, max_depth)

    @classmethod
    def chains(
        cls, chains: Sequence[Sequence[int]], device: torch.device | str = "cpu"
    ) -> "DraftTree":
        """Trees without branches, such as a prompt or a draft of one sequence."""
        return cls.build([(c, range(-1, len(c) - 1)) for c in chains], device)

    @property
    def batch(self) -> int:
        return self.indptr.shape[0] - 1

    @property
    def num_nodes(self) -> int:
        """Rows, padding included."""
        return self.token_ids.shape[0]

    @property
    def device(self) -> torch.device:
        return self.token_ids.device

    @property
    def depth(self) -> Tensor:
        """[num_nodes] int32; -1 at padding."""
        return self._derived[0]

    @property
    def first_child(self) -> Tensor:
        """[num_nodes] int32: the lowest child's index within the tree, -1 if there is none."""
        return self._derived[1]

    @property
    def next_sibling(self) -> Tensor:
        """[num_nodes] int32: the next higher node of the same parent, -1 if there is none."""
        return self._derived[2]

    @property
    def ancestor_bits(self) -> Tensor:
        """[num_nodes, ceil(max_nodes / 64)] int64: bit j of row i is set if j is i or above it.

        Node j is bit ``j % 64`` of word ``j // 64``.
        """
        return self._derived[3]

    @cached_property
    def _derived(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        words = (self.max_nodes + 63) // 64
        if self.parents.is_cuda and has_cuda_extension():
            depth, first_child, next_sibling, ancestor_bits = torch.ops.wanspec.derive_tree_cuda(
                self.parents, self.indptr, words
            )
            return depth, first_child, next_sibling, ancestor_bits
        return derive_reference(self.parents, self.indptr, words)


def derive_reference(
    parents: Tensor, indptr: Tensor, words: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """depth, first_child, next_sibling, ancestor_bits as `DraftTree` has them, without a host sync.

    Pointer doubling: after k rounds every node has seen 2**k ancestors. Some forty launches; the
    CUDA extension's kernel takes one.
    """
    n = parents.shape[0]
    device = parents.device
    rows = torch.arange(n, device=device)
    tree = torch.searchsorted(indptr, rows.int(), right=True) - 1
    start = indptr[tree].long()
    real = rows < indptr[-1]
    local = rows - start
    parent = torch.where(real & (parents >= 0), parents.long() + start, -1)

    depth = (parent >= 0).int()
    word = torch.arange(words, device=device)
    one = torch.ones((), dtype=torch.int64, device=device)
    bits = torch.where(
        real[:, None] & (word == local[:, None] // 64), one << (local[:, None] % 64), 0
    )
    jump = parent
    for _ in range((64 * words - 1).bit_length()):
        above = jump.clamp(min=0)
        has_above = jump >= 0
        depth = depth + torch.where(has_above, depth[above], 0)
        bits = bits | torch.where(has_above[:, None], bits[above], 0)
        jump = torch.where(has_above, jump[above], -1)
    depth = torch.where(real, depth, -1)

    # Children of one parent, in order, stand side by side once rows are sorted by parent.
    by_parent, order = torch.sort(parent, stable=True)
    follows = (by_parent[1:] == by_parent[:-1]) & (by_parent[1:] >= 0)
    next_sibling = torch.full((n,), -1, dtype=torch.int32, device=device)
    next_sibling[order[:-1]] = torch.where(follows, local[order[1:]], -1).int()
    # Row n takes what roots and padding would write.
    first_child = torch.full((n + 1,), n, dtype=torch.int64, device=device)
    first_child.scatter_reduce_(0, torch.where(parent >= 0, parent, n), local, "amin")
    first_child = torch.where(first_child[:n] < n, first_child[:n], -1).int()
    return depth, first_child, next_sibling, bits


def _check(b: int, tokens: Sequence[int], parents: Sequence[int]) -> int:
    """Raise for an invalid tree; return its depth."""
    if not 1 <= len(tokens) <= MAX_NODES:
        raise ValueError(f"tree {b}: expected 1..{MAX_NODES} nodes, got {len(tokens)}")
    if len(parents) != len(tokens):
        raise ValueError(f"tree {b}: expected {len(tokens)} parents, got {len(parents)}")
    if parents[0] != -1:
        raise ValueError(f"tree {b}: expected parent -1 at the root, got {parents[0]}")
    depths = [0]
    for i, parent in enumerate(parents[1:], start=1):
        if not 0 <= parent < i:
            raise ValueError(f"tree {b}, node {i}: expected a parent in 0..{i - 1}, got {parent}")
        depths.append(depths[parent] + 1)
    for i, token in enumerate(tokens):
        if not 0 <= token < 1 << 31:
            raise ValueError(f"tree {b}, node {i}: expected a token id, got {token}")
    return max(depths)
