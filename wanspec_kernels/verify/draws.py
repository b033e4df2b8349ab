"""Draws: what the tokens of a tree were drawn from, as the rejection rule reads it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wanspec_kernels.tree import DraftTree, Expansion

MAX_WEIGHT = 65535


@dataclass(frozen=True)
class Draws:
    """The ordered draws at every node, and their sparse distributions.

    Draws are not nodes: several may name one child, and each is tested. A distribution row is one
    source's at one node, exactly ``weights / sum(weights)`` over its tokens. The draws of one row
    stand side by side, and the rows of one node are consecutive, in the order of their draws.
    """

    indptr: (
        Tensor  # [num_nodes + 1] int32, the i-th row of the tree has draws indptr[i]:indptr[i + 1]
    )
    children: Tensor  # [num_draws] int32, node within the tree that carries the drawn token
    rows: Tensor  # [num_draws] int32, distribution it was drawn from
    token_ids: Tensor  # [num_rows, support] int32, distinct within a row, -1 = padding
    weights: Tensor  # [num_rows, support] int32, 0..MAX_WEIGHT, 0 at padding
    replacement: Tensor  # [num_rows] bool; False: a row's later draws exclude its earlier tokens
    max_rows: int  # host-side bound on the rows of any one node

    @classmethod
    def build(
        cls,
        expansions: Sequence[Sequence[Expansion]],
        tree: DraftTree,
        replacement: bool | Sequence[bool],
    ) -> "Draws":
        """Lay out the expansions of each tree, checked on the host against the tree.

        Expansions of one node are tested in the order given. Whether one takes part may depend on
        what earlier ones drew, never on its own draws or later ones': see docs/design.md.
        `replacement` is one value, or one a tree. Reads the tree back from its device.

        Raises:
            ValueError: a draw does not fit its node, its child or its distribution.
        """
        batch = tree.batch
        if len(expansions) != batch:
            raise ValueError(f"expansions: expected {batch} trees, got {len(expansions)}")
        replacements = [replacement] * batch if isinstance(replacement, bool) else list(replacement)
        if len(replacements) != batch:
            raise ValueError(f"replacement: expected one value or {batch}, got {len(replacements)}")
        indptr: list[int] = tree.indptr.tolist()
        token_ids: list[int] = tree.token_ids.tolist()
        parents: list[int] = tree.parents.tolist()

        at_node: list[list[tuple[Expansion, bool]]] = [[] for _ in range(tree.num_nodes)]
        for b, (tree_expansions, replace) in enumerate(zip(expansions, replacements, strict=True)):
            here = slice(indptr[b], indptr[b + 1])
            for expansion in tree_expansions:
                _check(b, expansion, token_ids[here], parents[here], replace)
                if expansion.children:
                    at_node[indptr[b] + expansion.parent].append((expansion, replace))

        ordered = [entry for entries in at_node for entry in entries]
        support = max((len(expansion.token_ids) for expansion, _ in ordered), default=1)
        draws_indptr = [0]
        for entries in at_node:
            draws_indptr.append(draws_indptr[-1] + sum(len(e.children) for e, _ in entries))
        children = [child for expansion, _ in ordered for child in expansion.children]
        rows = [row for row, (expansion, _) in enumerate(ordered) for _ in expansion.children]
        device = tree.device

        def on_device(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32).to(device)

        def table(rows: list[tuple[int, ...]], padding: int) -> Tensor:
            padded = [value for row in rows for value in (*row, *[padding] * (support - len(row)))]
            return on_device(padded).view(len(rows), support)

        return cls(
            on_device(draws_indptr),
            on_device(children),
            on_device(rows),
            table([expansion.token_ids for expansion, _ in ordered], -1),
            table([expansion.weights for expansion, _ in ordered], 0),
            torch.tensor([replace for _, replace in ordered], dtype=torch.bool).to(device),
            max((len(entries) for entries in at_node), default=0),
        )


def _check(
    b: int, expansion: Expansion, tree_tokens: list[int], tree_parents: list[int], replace: bool
) -> None:
    where = f"tree {b}, draws at node {expansion.parent}"
    num_nodes = len(tree_tokens)
    if not 0 <= expansion.parent < num_nodes:
        raise ValueError(f"{where}: expected a node in 0..{num_nodes - 1}")
    support, weights = expansion.token_ids, expansion.weights
    if not support or len(support) != len(weights):
        raise ValueError(
            f"{where}: expected as many weights as tokens, at least one, "
            f"got {len(support)} tokens and {len(weights)} weights"
        )
    if len(set(support)) != len(support) or min(support) < 0 or max(support) >= 1 << 31:
        raise ValueError(f"{where}: expected distinct token ids, got {support}")
    if not all(1 <= weight <= MAX_WEIGHT for weight in weights):
        raise ValueError(f"{where}: expected weights in 1..{MAX_WEIGHT}, got {weights}")
    drawn: list[int] = []
    for child in expansion.children:
        if not 0 <= child < num_nodes or tree_parents[child] != expansion.parent:
            raise ValueError(f"{where}: expected its children, got node {child}")
        drawn.append(tree_tokens[child])
    outside = set(drawn) - set(support)
    if outside:
        raise ValueError(
            f"{where}: tokens {sorted(outside)} are outside the distribution {support}"
        )
    if not replace and len(set(drawn)) != len(drawn):
        raise ValueError(f"{where}: drawn without replacement, yet a token twice: {drawn}")
