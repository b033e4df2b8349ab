"""Layout: which slots a request's text and nodes have, and who sees whom in a pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drafter.node import Node
from drafter.plan import Plan
from drafter.slots import Slots


class Layout:
    """Keys and values lie in arbitrary slots; a mask says what each token of a pass attends to."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self.slots = Slots(num_slots)
        self.text_slots: list[int] = []  # of the text's tokens, as far as they are computed
        self._in_text = np.zeros(0, dtype=np.bool_)  # [slots], those of the text

    def plan(self, chunk: Sequence[int], reaches_root: bool, nodes: Sequence[Node]) -> Plan:
        """The text's next tokens, then nodes below it; parents stand before children.

        Rows are wanted of the chunk's last token, where it is the root, and of every node.
        """
        done, num_text = len(self.text_slots), len(chunk)
        slots = self.slots.take(num_text + len(nodes))
        visible = np.zeros((len(slots), self.slots.high_water), dtype=np.bool_)
        visible[:, : len(self._in_text)] = self._in_text
        if num_text:
            visible[:num_text, slots[:num_text]] = np.tri(num_text, dtype=np.bool_)
            visible[num_text:, slots[:num_text]] = True
        rows: list[int] = []
        columns: list[int] = []
        for i, node in enumerate(nodes, start=num_text):
            node.slot = slots[i]
            path = [slots[i], *node.slots_above()]
            rows += [i] * len(path)
            columns += path
        visible[rows, columns] = True
        return Plan(
            np.array([*chunk, *(node.token for node in nodes)], dtype=np.int64),
            np.array([*range(done, done + num_text), *(node.index for node in nodes)], np.int64),
            np.array(slots, dtype=np.int64),
            visible,
            np.arange(num_text - 1 if reaches_root and num_text else num_text, len(slots)),
        )

    def keep(self, slots: Sequence[int]) -> None:
        """These hold the text's next tokens."""
        self.text_slots += slots
        if self.slots.high_water > len(self._in_text):
            grown = np.zeros(self.slots.high_water, dtype=np.bool_)
            grown[: len(self._in_text)] = self._in_text
            self._in_text = grown
        self._in_text[list(slots)] = True

    def cut(self, length: int) -> None:
        """Forget the text from `length` on."""
        if length:
            self.slots.give_back(self.text_slots[length:])
            self._in_text[self.text_slots[length:]] = False
        else:  # and nothing of an earlier, longer text makes masks wide
            self.slots = Slots(self._num_slots)
            self._in_text = np.zeros(0, dtype=np.bool_)
        del self.text_slots[length:]
