"""A node of a growing tree."""

from __future__ import annotations

from collections.abc import Iterator


class Node:
    __slots__ = (
        "alive",
        "children",
        "code",
        "drawn",
        "expanded",
        "grafted",
        "index",
        "log_probability",
        "parent",
        "slot",
        "support",
        "token",
        "weights",
    )

    def __init__(
        self, token: int, parent: Node | None, index: int, log_probability: float, code: int = 0
    ) -> None:
        self.token = token
        self.parent = parent  # None at the root
        self.index = index  # of its token in the text, should it be committed
        self.log_probability = log_probability  # of the path, up to a constant of the whole tree
        self.code = code  # `confidence` of it given its parent, as the model has it
        self.children: dict[int, Node] = {}
        self.slot = -1  # of its keys and values, -1 before they are computed
        self.expanded = False
        self.alive = True
        self.grafted = False  # the verifier told us of it
        # Under `rejection`, once expanded: tokens in the order drawn, and what they were drawn
        # from.
        self.drawn: tuple[int, ...] = ()
        self.support: tuple[int, ...] = ()
        self.weights: tuple[int, ...] = ()

    def slots_above(self) -> Iterator[int]:
        """Slots of its ancestors below the root; the root's own belongs to the text."""
        node = self.parent
        while node is not None and node.parent is not None:
            yield node.slot
            node = node.parent

    def path(self) -> tuple[int, ...]:
        """Tokens below the root, its own last."""
        tokens: list[int] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            tokens.append(node.token)
            node = node.parent
        return tuple(reversed(tokens))

    def below(self) -> Iterator[Node]:
        """All nodes below it, parents before children."""
        level = [self]
        while level:
            level = [child for node in level for child in node.children.values()]
            yield from level
