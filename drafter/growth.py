"""Growth: the tree one request's drafter keeps ahead of the committed text. No model, no clock."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest
from random import Random

from drafter.candidates import Candidates, RowSampling
from drafter.draws import draw, quantise
from drafter.layout import Layout
from drafter.node import Node
from drafter.plan import Plan
from drafter.trie import write_drafts
from wanspec_kernels.wire import MAX_DEPTH, MAX_DRAFT_NODES, Draft, Open, check_of
from wanspec_kernels.wire.confidence import Calibration, code_of

MAX_HELD_BACK = 4096  # candidates for which there was no room


@dataclass(frozen=True)
class GrowthShape:
    """How a tree grows; the request adds its own bounds on nodes and depth."""

    width: int = 16  # nodes one pass expands at most:
    min_share: float = 0.0  # those with so much of the likeliest one's probability
    max_children: int = 4  # of a node, under `match`
    max_root_children: int = 8
    min_probability: float = 0.03  # of a child given its parent; the likeliest child needs none
    min_path_probability: float = 0.001  # of a node given the base, below which nothing is drafted
    support: int = 32  # tokens a draw is made from, under `rejection`
    prompt_chunk: int = 256  # tokens of a text not yet seen that one pass takes

    @classmethod
    def of_width(cls, width: int) -> GrowthShape:
        """For a daemon that is told so many nodes a pass."""
        return cls.wide(width) if width > cls.width else cls(width)

    @classmethod
    def wide(cls, width: int = 128) -> GrowthShape:
        """For machines on which a pass over so many rows takes about as long as over one."""
        return cls(
            width,
            max_children=16,
            max_root_children=16,
            min_probability=0.002,
            min_path_probability=0.0005,
        )


class Growth:
    """Expands the likeliest nodes first and keeps, at a commit, exactly what hangs below it.

    What the model says of a token is worth what it turned out to be worth at earlier commits. A
    pass is `plan`, a model run, then `absorb` with the candidates of the plan's rows; or `abandon`,
    if the run failed. Nodes are sent once; `unsend` has all of them sent again. Nodes that others
    drafted may be grafted on: they are grown below and not sent.

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
        self._sampling = request.sampling
        self.shape = shape or GrowthShape()
        self._calibration = Calibration()
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
        self._layout = Layout(max_positions + self._max_nodes)
        self._text: list[int] = []
        self._check = 0
        self._root = Node(0, None, -1, 0.0)
        self._num_nodes = 0  # below the root
        self._num_expanded = 0  # the root included
        self._unexpanded: list[Node] = []  # below the root, parents before children
        self._held_back: list[tuple[float, Node, int, int]] = []  # log probability, parent, ...
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
        return len(self._layout.text_slots) == len(self._text)

    @property
    def num_nodes(self) -> int:
        """Nodes below the root."""
        return self._num_nodes

    @property
    def num_slots_taken(self) -> int:
        return self._layout.slots.num_taken

    @property
    def too_long(self) -> bool:
        """The text has left the positions the model knows; nothing more is drafted."""
        return len(self._text) > self._max_positions

    @property
    def planned_paths(self) -> list[tuple[int, ...]]:
        """Below the root, of the rows that the plan under way asks for."""
        return [node.path() for node in self._planned]

    def plan(self) -> Plan | None:
        """The next pass, or None where there is nothing to do until the next commit."""
        if self.too_long:
            return None
        done = len(self._layout.text_slots)
        chunk = self._text[done : done + self.shape.prompt_chunk]
        reaches_root = bool(chunk) and done + len(chunk) == len(self._text)
        nodes = self._choose(self.shape.width - reaches_root) if reaches_root or not chunk else []
        if not chunk and not nodes:
            return None
        plan = self._layout.plan(chunk, reaches_root, nodes)
        self._planned = [self._root, *nodes] if reaches_root else nodes
        return plan

    def samplings(self, plan: Plan) -> list[RowSampling]:
        """How the token after each of the plan's rows is sampled."""
        shape = self.shape
        count = max(shape.support, self.request.num_draws)
        if not self._rejection:
            count = max(shape.max_children, shape.max_root_children)
        return [
            RowSampling(int(plan.positions[row]) + 1, self._sampling, count) for row in plan.rows
        ]

    def absorb(self, plan: Plan, candidates: Sequence[Candidates]) -> None:
        """Take in the pass that `plan` asked for; `candidates` are those of its rows."""
        expanded, self._planned = self._planned, []
        below = sum(node is not self._root for node in expanded)
        num_text = len(plan.slots) - below
        if num_text:
            self._layout.keep(plan.slots[:num_text].tolist())
        chosen = set(map(id, expanded))
        self._unexpanded = [n for n in self._unexpanded if id(n) not in chosen]
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
        for node in self._planned:
            if node is not self._root:
                node.slot = -1
        self._planned = []
        self._layout.slots.give_back(plan.slots.tolist())

    def graft(self, draft: Draft) -> None:
        """Take in nodes that others drafted below this very text, as far as the budget goes."""
        if self._rejection or (draft.base_length, draft.base_check) != (self.length, self._check):
            return
        logs = self._calibration.logs
        placed = [self._root]
        for i, (parent, token) in enumerate(zip(draft.parents, draft.token_ids, strict=True)):
            above = placed[parent + 1]
            node = above.children.get(token)
            if node is None:
                if self._num_nodes >= self._max_nodes:
                    return
                code = draft.confidences[i] if draft.confidences else code_of(0.5)
                node = self._add(above, token, code, above.log_probability + logs[code])
                node.grafted = True
            placed.append(node)

    def commit(self, token_ids: Sequence[int]) -> None:
        """Append to the text, keep what hangs below it and free the slots of the rest."""
        for token in token_ids:
            self._learn(token)
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
                    self._layout.keep([child.slot])
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
        most = min(len(self._layout.text_slots), len(token_ids) - 1)
        while common < most and self._text[common] == token_ids[common]:
            common += 1
        self._layout.cut(common)
        self._text = list(token_ids)
        self._check = check_of(token_ids)
        self._root = Node(self._text[-1], None, len(self._text) - 1, 0.0)
        self._num_nodes = self._num_expanded = 0
        self._unexpanded, self._held_back, self._unsent = [], [], []

    @property
    def num_unsent(self) -> int:
        return len(self._unsent)

    def take_drafts(self, max_nodes: int | None = None) -> list[Draft]:
        """Messages with nodes not sent yet, each with all that it takes to stand alone.

        The likeliest `max_nodes` of them; the others wait for the next call, and fall with their
        branches. None is all.
        """
        unsent = [node for node in self._unsent if not node.grafted]
        self._unsent = []
        if max_nodes is not None and len(unsent) > max_nodes:
            # No node is likelier than its parent, which comes first among equals.
            unsent.sort(key=lambda node: node.log_probability, reverse=True)
            self._unsent = unsent[max_nodes:]
            unsent = unsent[:max_nodes]
        return write_drafts(
            self.request.request, self.length, self._check, self._root, unsent, self._rejection
        )

    def unsend(self) -> None:
        """What was sent may not have arrived: all nodes go with the next messages."""
        self._unsent = list(self._root.below())

    def _choose(self, width: int) -> list[Node]:
        """The likeliest nodes to expand, as many as width and budget allow."""
        if self._rejection:
            charged = self._num_expanded * self.request.num_draws
            width = min(width, (self._max_nodes - charged) // self.request.num_draws)
        elif self._num_nodes >= self._max_nodes:
            return []
        least = self._root.log_probability + math.log(self.shape.min_path_probability)
        # A node's children are one deeper than it, and it needs a position itself.
        deepest = min(self._root.index + self._max_depth, self._max_positions)
        # Parents come first among equals, so that nobody is chosen without its ancestors.
        chosen = nlargest(
            width,
            (n for n in self._unexpanded if n.log_probability >= least and n.index < deepest),
            key=lambda n: n.log_probability,
        )
        if self.shape.min_share > 0 and chosen:
            least = chosen[0].log_probability + math.log(self.shape.min_share)
            chosen = [n for n in chosen if n.log_probability >= least]
        return chosen

    def _learn(self, token: int) -> None:
        children = self._root.children
        if self._root.expanded and not self._rejection:
            own = [node.code for node in children.values() if not node.grafted]
            child = children.get(token)
            hit = None if child is None or child.grafted else child.code
            self._calibration.observe(own, hit)

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
                p = share[token] / total
                self._add(node, token, code_of(p), node.log_probability + math.log(p))

    def _hold_children(self, node: Node, row: Candidates) -> None:
        shape = self.shape
        logs = self._calibration.logs
        most = shape.max_root_children if node is self._root else shape.max_children
        worth = 0.0  # of the candidate before: what was learnt may not turn the model's own order
        for i, (token, p) in enumerate(
            zip(row.token_ids[:most], row.probabilities[:most], strict=True)
        ):
            if i == 0 or p >= shape.min_probability:
                code = code_of(p)
                worth = min(worth, logs[code])
                known = node.children.get(token)
                if known is not None:  # grafted: what others made of it may be too little
                    known.code, known.grafted = code, False
                    self._raise(known, node.log_probability + worth)
                    self._unsent.append(known)
                    continue
                self._held_back.append((node.log_probability + worth, node, token, code))

    def _admit(self) -> None:
        """Make nodes of the likeliest candidates as far as the budget goes."""
        room = self._max_nodes - self._num_nodes
        if self._rejection or room <= 0 or not self._held_back:
            return
        self._held_back.sort(key=lambda held: held[0], reverse=True)
        least = self._root.log_probability + math.log(self.shape.min_path_probability)
        likely = sum(held[0] >= least for held in self._held_back[:room])
        for log_probability, parent, token, code in self._held_back[:likely]:
            if token not in parent.children:  # it may have been grafted since
                self._add(parent, token, code, log_probability)
        self._held_back = self._held_back[likely : likely + MAX_HELD_BACK]

    def _add(self, parent: Node, token: int, code: int, log_probability: float) -> Node:
        node = Node(token, parent, parent.index + 1, log_probability, code)
        parent.children[token] = node
        self._num_nodes += 1
        self._unexpanded.append(node)
        self._unsent.append(node)
        return node

    def _raise(self, top: Node, log_probability: float) -> None:
        """A node and what hangs below it are likelier than they were taken for, if at all."""
        more = log_probability - top.log_probability
        if more > 0:
            for node in (top, *top.below()):
                node.log_probability += more

    def _prune(self, top: Node) -> None:
        pruned = [top, *top.below()]
        for node in pruned:
            node.alive = False
            self._num_nodes -= 1
            self._num_expanded -= node.expanded
        self._layout.slots.give_back(node.slot for node in pruned if node.slot >= 0)
