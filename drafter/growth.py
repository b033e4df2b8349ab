"""Growth: the tree one request's drafter keeps ahead of the committed text. No model, no clock."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest
from random import Random

import numpy as np

from drafter.candidates import Candidates, RowSampling
from drafter.draws import draw, quantise
from drafter.node import Node
from drafter.plan import Plan
from drafter.slots import Slots
from drafter.trie import write_drafts
from wanspec_kernels.protocol import MAX_DEPTH, MAX_DRAFT_NODES, Draft, Open, check_of


@dataclass(frozen=True)
class GrowthShape:
    """How a tree grows; the request adds its own bounds on nodes and depth."""

    width: int = 16  # nodes one pass expands
    max_children: int = 4  # of a node, under `match`
    max_root_children: int = 8
    min_probability: float = 0.03  # of a child given its parent; the likeliest child needs none
    min_path_probability: float = 0.001  # of a node given the base, below which nothing is drafted
    support: int = 32  # tokens a draw is made from, under `rejection`
    prompt_chunk: int = 256  # tokens of a text not yet seen that one pass takes


class Growth:
    """Expands the likeliest nodes first and keeps, at a commit, exactly what hangs below it.

    A pass is `plan`, a model run, then `absorb` with the candidates of the plan's rows; or
    `abandon`, if the run failed. Nodes are sent once; `unsend` has all of them sent again.

    Under `match` the budget counts nodes. Under `rejection` it counts a fixed charge for every
    expanded node, and how many draws a node gets is fixed too: a count that depended on what was
    drawn would bias what the verifier accepts.
    """

    def __init__(
        self,
        request: Open,
        *,
        max_positions: int,
        max_nodes: int,
        shape: GrowthShape | None = None,
        random: Random | None = None,
    ) -> None:
        self.request = request
        self._shape = shape or GrowthShape()
        self._max_positions = max_positions
        self._max_nodes = min(request.max_nodes, max_nodes)
        self._max_depth = min(request.max_depth, MAX_DEPTH)
        self._rejection = request.rule == "rejection"
        if self._rejection:
            if request.num_draws > min(self._max_nodes, MAX_DRAFT_NODES):
                raise ValueError(
                    f"num_draws: expected at most {min(self._max_nodes, MAX_DRAFT_NODES)} nodes"
                    f" for one expansion, got {request.num_draws}"
                )
            # A path with all its draws has to fit into one message.
            self._max_depth = min(self._max_depth, MAX_DRAFT_NODES // request.num_draws)
        # Never the request's seed: draws that follow from the coins' seed could be steered.
        self._random = random or Random(int.from_bytes(os.urandom(32), "little"))
        self._num_slots = max_positions + self._max_nodes
        self._slots = Slots(self._num_slots)
        self._text: list[int] = []
        self._check = 0
        self._text_slots: list[int] = []  # of the text's tokens, as far as they are computed
        self._in_text = np.zeros(0, dtype=np.bool_)  # [slots], those of the text
        self._root = Node(0, None, -1, 0.0)
        self._num_nodes = 0  # below the root
        self._num_expanded = 0  # the root included
        self._unexpanded: list[Node] = []  # below the root
        self._held_back: list[tuple[float, Node, int]] = []  # candidates the budget had no room for
        self._unsent: list[Node] = []
        self._planned: list[Node] = []
        self.restart(request.token_ids)

    @property
    def length(self) -> int:
        """Committed tokens."""
        return len(self._text)

    @property
    def check(self) -> int:
        return self._check

    @property
    def caught_up(self) -> bool:
        """The whole text has been through the model."""
        return len(self._text_slots) == len(self._text)

    @property
    def num_nodes(self) -> int:
        """Nodes below the root."""
        return self._num_nodes

    @property
    def num_slots_taken(self) -> int:
        return self._slots.num_taken

    @property
    def too_long(self) -> bool:
        """The text has left the positions the model knows; nothing more is drafted."""
        return len(self._text) > self._max_positions

    def plan(self) -> Plan | None:
        """The next pass, or None where there is nothing to do until the next commit."""
        if self.too_long:
            return None
        return self._plan_nodes() if self.caught_up else self._plan_text()

    def samplings(self, plan: Plan) -> list[RowSampling]:
        """How the token after each of the plan's rows is sampled."""
        shape = self._shape
        count = max(shape.support, self.request.num_draws)
        if not self._rejection:
            count = max(shape.max_children, shape.max_root_children)
        return [
            RowSampling.of(self.request, int(plan.positions[row]) + 1, count) for row in plan.rows
        ]

    def absorb(self, plan: Plan, candidates: Sequence[Candidates]) -> None:
        """Take in the pass that `plan` asked for; `candidates` are those of its rows."""
        if self._planned:
            for node, slot in zip(self._planned, plan.slots.tolist(), strict=True):
                node.slot = slot
            expanded = self._planned
            chosen = set(map(id, expanded))
            self._unexpanded = [n for n in self._unexpanded if id(n) not in chosen]
            self._planned = []
        else:
            slots = plan.slots.tolist()
            self._text_slots += slots
            self._mark(slots)
            expanded = [self._root] if len(plan.rows) else []
        for node, row in zip(expanded, candidates, strict=True):
            node.expanded = True
            self._num_expanded += 1
            if self._rejection:
                self._draw_children(node, row)
            else:
                self._hold_children(node, row)
        self._admit()

    def abandon(self, plan: Plan) -> None:
        """The pass failed: its slots are free again."""
        self._planned = []
        self._slots.give_back(plan.slots.tolist())

    def commit(self, token_ids: Sequence[int]) -> None:
        """Append to the text, keep what hangs below it and free the slots of the rest."""
        for token in token_ids:
            child = self._root.children.pop(token, None)
            self._root.alive = False
            for sibling in self._root.children.values():
                self._prune(sibling)
            if self._root.expanded:
                self._num_expanded -= 1
            if child is None:
                child = Node(token, None, len(self._text), 0.0)
            else:
                child.parent = None
                self._num_nodes -= 1
                if child.slot >= 0:
                    self._text_slots.append(child.slot)
                    self._mark([child.slot])
            self._root = child
            self._text.append(token)
        self._check = check_of(token_ids, self._check)
        root = self._root
        self._unexpanded = [n for n in self._unexpanded if n.alive and n is not root]
        self._unsent = [n for n in self._unsent if n.alive and n is not root]
        self._held_back = [held for held in self._held_back if held[1].alive]
        self._admit()

    def restart(self, token_ids: Sequence[int]) -> None:
        """Begin anew with this text; what is computed of a common beginning is kept."""
        for node in self._root.children.values():
            self._prune(node)
        common = 0
        # The last token's logits are needed again, so it is computed again.
        most = min(len(self._text_slots), len(token_ids) - 1)
        while common < most and self._text[common] == token_ids[common]:
            common += 1
        if common:
            self._slots.give_back(self._text_slots[common:])
            self._in_text[self._text_slots[common:]] = False
        else:  # and nothing of an earlier, longer text makes masks wide
            self._slots = Slots(self._num_slots)
            self._in_text = np.zeros(0, dtype=np.bool_)
        del self._text_slots[common:]
        self._text = list(token_ids)
        self._check = check_of(token_ids)
        self._root = Node(self._text[-1], None, len(self._text) - 1, 0.0)
        self._num_nodes = self._num_expanded = 0
        self._unexpanded, self._held_back, self._unsent = [], [], []

    def take_drafts(self) -> list[Draft]:
        """Messages with all nodes not sent yet, each with all that it takes to stand alone."""
        unsent, self._unsent = self._unsent, []
        return write_drafts(
            self.request.request, self.length, self._check, self._root, unsent, self._rejection
        )

    def unsend(self) -> None:
        """What was sent may not have arrived: all nodes go with the next messages."""
        self._unsent = list(self._root.below())

    def _plan_text(self) -> Plan:
        done = len(self._text_slots)
        chunk = self._text[done : done + self._shape.prompt_chunk]
        n = len(chunk)
        slots = np.array(self._slots.take(n), dtype=np.int64)
        visible = self._visible(n)
        visible[:, slots] = np.tri(n, dtype=np.bool_)
        last = np.arange(n - 1, n if done + n == len(self._text) else n - 1)
        positions = np.arange(done, done + n)
        return Plan(np.array(chunk, dtype=np.int64), positions, slots, visible, last)

    def _plan_nodes(self) -> Plan | None:
        nodes = self._choose()
        if not nodes:
            return None
        n = len(nodes)
        slots = self._slots.take(n)
        visible = self._visible(n)
        rows: list[int] = []
        columns: list[int] = []
        for i, node in enumerate(nodes):
            path = [slots[i], *node.slots_above()]
            rows += [i] * len(path)
            columns += path
        visible[rows, columns] = True
        self._planned = nodes
        return Plan(
            np.array([node.token for node in nodes], dtype=np.int64),
            np.array([node.index for node in nodes], dtype=np.int64),
            np.array(slots, dtype=np.int64),
            visible,
            np.arange(n),
        )

    def _choose(self) -> list[Node]:
        """The likeliest nodes to expand, as many as width and budget allow."""
        width = self._shape.width
        if self._rejection:
            charged = self._num_expanded * self.request.num_draws
            width = min(width, (self._max_nodes - charged) // self.request.num_draws)
        elif self._num_nodes >= self._max_nodes:
            return []
        least = self._root.log_probability + math.log(self._shape.min_path_probability)
        # A node's children are one deeper than it, and it needs a position itself.
        deepest = min(self._root.index + self._max_depth, self._max_positions)
        return nlargest(
            width,
            (n for n in self._unexpanded if n.log_probability >= least and n.index < deepest),
            key=lambda n: n.log_probability,
        )

    def _visible(self, n: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
        """[n, slots in use]: the text's slots."""
        visible = np.zeros((n, self._slots.high_water), dtype=np.bool_)
        visible[:, : len(self._in_text)] = self._in_text
        return visible

    def _mark(self, slots: list[int]) -> None:
        if self._slots.high_water > len(self._in_text):
            grown = np.zeros(self._slots.high_water, dtype=np.bool_)
            grown[: len(self._in_text)] = self._in_text
            self._in_text = grown
        self._in_text[slots] = True

    def _draw_children(self, node: Node, row: Candidates) -> None:
        node.support, node.weights = quantise(row, self.request.num_draws)
        drawn = draw(
            node.support,
            node.weights,
            self.request.num_draws,
            replacement=self.request.replacement,
            random=self._random,
        )
        node.drawn = tuple(drawn)
        total = sum(node.weights)
        share = dict(zip(node.support, node.weights, strict=True))
        for token in drawn:
            if token not in node.children:
                self._add(node, token, node.log_probability + math.log(share[token] / total))

    def _hold_children(self, node: Node, row: Candidates) -> None:
        shape = self._shape
        most = shape.max_root_children if node is self._root else shape.max_children
        for i, (token, p) in enumerate(
            zip(row.token_ids[:most], row.probabilities[:most], strict=True)
        ):
            if i == 0 or p >= shape.min_probability:
                self._held_back.append((node.log_probability + math.log(p), node, token))

    def _admit(self) -> None:
        """Make nodes of the likeliest candidates as far as the budget goes."""
        room = self._max_nodes - self._num_nodes
        if self._rejection or room <= 0 or not self._held_back:
            return
        self._held_back.sort(key=lambda held: held[0], reverse=True)
        least = self._root.log_probability + math.log(self._shape.min_path_probability)
        likely = sum(log_probability >= least for log_probability, _, _ in self._held_back[:room])
        for log_probability, parent, token in self._held_back[:likely]:
            self._add(parent, token, log_probability)
        del self._held_back[:likely]

    def _add(self, parent: Node, token: int, log_probability: float) -> None:
        node = Node(token, parent, parent.index + 1, log_probability)
        parent.children[token] = node
        self._num_nodes += 1
        self._unexpanded.append(node)
        self._unsent.append(node)

    def _prune(self, top: Node) -> None:
        pruned = [top, *top.below()]
        for node in pruned:
            node.alive = False
            self._num_nodes -= 1
            self._num_expanded -= node.expanded
        self._slots.give_back(node.slot for node in pruned if node.slot >= 0)
