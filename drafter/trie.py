"""Nodes into DRAFT messages, each a trie that stands alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from drafter.node import Node
from wanspec_kernels.tree import Expansion
from wanspec_kernels.wire import MAX_DRAFT_NODES, Draft


def write_drafts(
    request: int,
    base_length: int,
    base_check: int,
    root: Node,
    nodes: Sequence[Node],
    with_draws: bool,
) -> list[Draft]:
    """DRAFTs that carry `nodes` and their ancestors; `with_draws` the draws of every ancestor too.

    As few messages as `MAX_DRAFT_NODES` allows: a node's path, with the draws along it, has to fit.
    """
    drafts = []
    trie = _Trie(root)
    for node in nodes:
        if node in trie:
            continue
        missing = _missing(node, trie, with_draws)
        if len(trie) + len(missing) > MAX_DRAFT_NODES:
            drafts.append(trie.draft(request, base_length, base_check, with_draws))
            trie = _Trie(root)
            missing = _missing(node, trie, with_draws)
        trie.add(missing)
    if len(trie):
        drafts.append(trie.draft(request, base_length, base_check, with_draws))
    return drafts


class _Trie:
    def __init__(self, root: Node) -> None:
        self._root = root
        self._index = {root: -1}
        self._nodes: list[Node] = []

    def __contains__(self, node: Node) -> bool:
        return node in self._index

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            self._index[node] = len(self._nodes)
            self._nodes.append(node)

    def draft(self, request: int, base_length: int, base_check: int, with_draws: bool) -> Draft:
        index = self._index
        expansions = []
        if with_draws:
            for node in index:
                if node.drawn and next(iter(node.children.values())) in index:
                    children = tuple(index[node.children[token]] for token in node.drawn)
                    expansions.append(Expansion(index[node], children, node.support, node.weights))
        return Draft(
            request,
            base_length,
            base_check,
            tuple(node.token for node in self._nodes),
            tuple(index[node.parent] for node in self._nodes if node.parent is not None),
            tuple(expansions),
            bytes(node.code for node in self._nodes),
        )


def _missing(node: Node, trie: _Trie, with_draws: bool) -> list[Node]:
    """What `trie` lacks for `node` to stand in it, parents before children."""
    missing: list[Node] = []
    step: Node | None = node
    while step is not None and step not in trie:
        parent = step.parent
        missing[:0] = parent.children.values() if with_draws and parent is not None else [step]
        step = parent
    return missing
