"""A node of the pool's trie, and what sources drew there."""

from collections.abc import Iterator
from typing import NamedTuple

HOME = 0
"""The source number of the drafter at home; remote ones have higher numbers, in enrolment order."""


class Group(NamedTuple):
    """One source's draws at one node, without message-local indices."""

    drawn: tuple[int, ...]  # tokens, in order
    token_ids: tuple[int, ...]
    weights: tuple[int, ...]


_NO_GROUPS: dict[int, tuple[int, Group]] = {}  # never written to
_NO_CHILDREN: dict[int, "PoolNode"] = {}


class PoolNode:
    __slots__ = ("children", "groups", "order", "sources", "token")

    def __init__(self, token: int, order: int) -> None:
        self.token = token
        self.order = order  # of first arrival; a parent's is lower than its children's
        # Most nodes are leaves: fewer objects are less work for Python's collector.
        self.children = _NO_CHILDREN
        self.sources: dict[int, int] = {}  # in order of arrival: the best code each gave it
        self.groups = _NO_GROUPS  # by source: order of arrival, draws

    def add_child(self, token: int, order: int) -> "PoolNode":
        if self.children is _NO_CHILDREN:
            self.children = {}
        node = self.children[token] = PoolNode(token, order)
        return node

    def add_group(self, source: int, order: int, group: Group) -> None:
        if self.groups is _NO_GROUPS:
            self.groups = {}
        self.groups[source] = (order, group)

    def below(self) -> Iterator[tuple["PoolNode", "PoolNode"]]:
        """Every node below it with its parent, parents first."""
        level = [self]
        while level:
            next_level: list[PoolNode] = []
            for parent in level:
                for node in parent.children.values():
                    yield node, parent
                    next_level.append(node)
            level = next_level

    def drew(self, source: int, token: int) -> bool:
        return source in self.groups and token in self.groups[source][1].drawn
