"""What a captured pass has room for, and the memory its inputs lie in."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from wanspec_kernels.tree import MAX_NODES, DraftTree

ALIGNMENT = 4  # int32 numbers: kernels read faster what begins at multiples of 16 bytes


@dataclass(frozen=True)
class Capacity:
    """`batch` trees of up to `max_nodes` nodes each and `num_nodes` in all."""

    batch: int
    num_nodes: int
    max_nodes: int

    def __post_init__(self) -> None:
        if self.batch < 1 or not 1 <= self.max_nodes <= min(self.num_nodes, MAX_NODES):
            raise ValueError(
                f"Capacity: expected a batch from 1 on and max_nodes of 1..{MAX_NODES}, at most "
                f"num_nodes, got {self}"
            )

    def holds(self, tree: DraftTree) -> bool:
        return (
            tree.batch <= self.batch
            and tree.num_nodes <= self.num_nodes
            and tree.max_nodes <= self.max_nodes
        )


def smallest_that_holds(capacities: Iterable[Capacity], tree: DraftTree) -> Capacity | None:
    """The one with the fewest rows, as these are what a pass costs; None if there is none."""
    fitting = (c for c in capacities if c.holds(tree))
    return min(fitting, key=lambda c: (c.num_nodes, c.batch, c.max_nodes), default=None)


def ladder(
    sizes: Iterable[int], *, max_batch: int, max_rows: int, max_nodes: int
) -> tuple[Capacity, ...]:
    """A capacity for each size of a pass, which has room for every batch of no more rows.

    What it has room for beyond a batch's rows costs little: a tree without nodes is left at once.

    >>> ladder((1, 8, 64), max_batch=4, max_rows=16, max_nodes=12)[1:]
    (Capacity(batch=4, num_nodes=8, max_nodes=8), Capacity(batch=4, num_nodes=16, max_nodes=12))
    """
    rows = {min(size, max_rows) for size in sizes}
    return tuple(Capacity(min(n, max_batch), n, min(n, max_nodes)) for n in sorted(rows))


class PassBuffers:
    """The inputs of a pass at fixed addresses, filled up with padding.

    Rows past the last tree hold -1, trees past the last one have no nodes, and their context is
    empty. Until `load` there are no trees at all, and a pass writes to no page.
    """

    def __init__(self, capacity: Capacity, max_pages: int, device: torch.device) -> None:
        self.capacity = capacity
        sizes = (capacity.num_nodes, capacity.num_nodes, capacity.batch + 1, capacity.batch)
        self._sections = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
        longest = max(self._sections)
        self._minus_ones = torch.full((longest,), -1, dtype=torch.int32, device=device)
        self._zeros = torch.zeros(longest, dtype=torch.int32, device=device)
        self._packed = torch.zeros(sum(self._sections), dtype=torch.int32, device=device)
        parts = self._packed.split(self._sections)
        self.token_ids, self.parents, self.indptr, self.context_lens = (
            part[:size] for part, size in zip(parts, sizes, strict=True)
        )
        self.token_ids.fill_(-1)
        self.parents.fill_(-1)
        self.page_table = torch.full(
            (capacity.batch, max_pages), -1, dtype=torch.int32, device=device
        )

    def tree(self) -> DraftTree:
        """Over the buffers; what it derives from them belongs to the pass, and to its capture."""
        capacity = self.capacity
        return DraftTree(
            self.token_ids, self.parents, self.indptr, capacity.max_nodes, capacity.max_nodes - 1
        )

    def load(self, tree: DraftTree, context_lens: Tensor, page_table: Tensor) -> None:
        """Copy a batch in, three launches. It must fit, as must the width of `page_table`.

        Entries of an earlier batch's page table may stay behind those of this one: no slot in use
        leads there.
        """
        given = (tree.token_ids, tree.parents, tree.indptr, context_lens)
        fillers = (self._minus_ones, self._minus_ones, self._zeros, self._zeros)
        pieces = []
        for section, tensor, filler in zip(self._sections, given, fillers, strict=True):
            pieces += [tensor, filler[: section - tensor.shape[0]]]
        torch.cat(pieces, out=self._packed)
        if tree.batch < self.capacity.batch:
            self.indptr[tree.batch + 1 :] = tree.indptr[-1]
        self.page_table[: tree.batch, : page_table.shape[1]] = page_table
