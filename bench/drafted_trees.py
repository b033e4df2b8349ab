"""Trees as the drafter grows them over a text, and the target's logits at their nodes.

All trees of one context share a trie: a text is run once through either model, whichever trees it
occurs in.
"""

from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

import numpy as np
import torch
from torch import Tensor

from drafter.candidates import Candidates, Ranker, RowSampling
from drafter.draws import draw, quantise
from drafter.key_values import KeyValueStore
from drafter.model import DraftModel
from drafter.plan import Plan
from wanspec_kernels.tree import Expansion

SUPPORT = 32  # tokens a draw is made from, as `drafter.growth.GrowthShape` has it
MIN_PROBABILITY = 0.03  # of a child but the first, likewise
RANKED = ("coupled", "coupled, pruned", "target-only")


class Context:
    """A text up to `length` tokens in both models, and the trie of what was drafted after it.

    Node 0 of the trie is the text's last token. `stores` hold the whole text's keys and values at
    the first `text_length` slots; the trie's lie behind them, from one context to the next in the
    same places.
    """

    def __init__(
        self,
        models: tuple[DraftModel, DraftModel],  # target, draft
        stores: tuple[KeyValueStore, KeyValueStore],
        text_length: int,
        length: int,
        root_logits: tuple[Tensor, Tensor],  # [vocab] each
    ) -> None:
        self.length = length
        self.tokens, self.parents, self.depths = [-1], [-1], [0]
        self._models, self._stores, self._text_length = models, stores, text_length
        self._children: dict[tuple[int, int], int] = {}
        self._logits: tuple[dict[int, Tensor], dict[int, Tensor]] = (
            {0: root_logits[0]},
            {0: root_logits[1]},
        )

    def child(self, node: int, token: int) -> int:
        known = self._children.setdefault((node, token), len(self.tokens))
        if known == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(node)
            self.depths.append(self.depths[node] + 1)
        return known

    def target_logits(self, nodes: list[int]) -> list[Tensor]:
        return self._compute(0, nodes)

    def draft_logits(self, nodes: list[int]) -> list[Tensor]:
        return self._compute(1, nodes)

    def _compute(self, which: int, nodes: list[int]) -> list[Tensor]:
        """[vocab] float32 of each node; ancestors must have been computed, or be among them."""
        logits = self._logits[which]
        missing = sorted({node for node in nodes if node not in logits})
        if missing:
            base = self._text_length - 1  # of node 1's slot, less 1
            visible = np.zeros((len(missing), self._text_length + len(self.tokens) - 1), np.bool_)
            visible[:, : self.length] = True
            for row, node in enumerate(missing):
                above = node
                while above > 0:
                    visible[row, base + above] = True
                    above = self.parents[above]
            depths = np.array([self.depths[node] for node in missing])
            plan = Plan(
                np.array([self.tokens[node] for node in missing]),
                self.length - 1 + depths,
                base + np.array(missing),
                visible,
                np.arange(len(missing)),
            )
            rows = self._models[which].run([(self._stores[which], plan)])
            logits.update(zip(missing, rows, strict=True))
        return [logits[node] for node in nodes]


@dataclass
class Drafted:
    """One tree: nodes of a context's trie, and what was drawn where."""

    kind: str  # "coupled", "coupled, pruned", "target-only", "replacement" or "no replacement"
    width: int  # children or draws of an expanded node; pruned, at most
    num_expansions: int  # pruned, that times the width is a budget of nodes
    max_depth: int
    nodes: list[int] = field(default_factory=lambda: [0])  # in the trie
    parents: list[int] = field(default_factory=lambda: [-1])
    expansions: list[Expansion] = field(default_factory=list)
    _expanded: int = 0
    _frontier: list[tuple[float, int]] = field(default_factory=lambda: [(-1.0, 0)])

    def next_node(self) -> int | None:
        """The likeliest unexpanded node by the draft model, the older among equals."""
        pruned = self.kind == "coupled, pruned"
        spent = len(self.nodes) - 1 if pruned else self._expanded * self.width
        if spent == self.num_expansions * self.width or not self._frontier:
            return None
        return self._frontier[0][1]

    def expand(self, context: Context, candidates: Candidates, random: Random) -> None:
        """Only a pruned tree drops anything: whatever is drawn takes part."""
        probability, node = heappop(self._frontier)
        probability = -probability
        self._expanded += 1
        if self.kind in RANKED:
            chosen = list(zip(candidates.token_ids, candidates.probabilities, strict=True))
            if self.kind == "coupled, pruned":
                left = self.num_expansions * self.width - (len(self.nodes) - 1)
                chosen = [c for i, c in enumerate(chosen) if i == 0 or c[1] >= MIN_PROBABILITY]
                chosen = chosen[:left]
            self._add(context, node, probability, chosen)
            return
        support, weights = quantise(candidates, self.width)
        replacement = self.kind == "replacement"
        drawn = draw(support, weights, self.width, replacement=replacement, random=random)
        share = dict(zip(support, (w / sum(weights) for w in weights), strict=True))
        children = self._add(context, node, probability, [(t, share[t]) for t in drawn])
        self.expansions.append(Expansion(node, tuple(children), support, weights))

    def _add(
        self, context: Context, node: int, probability: float, chosen: list[tuple[int, float]]
    ) -> list[int]:
        children: dict[int, int] = {}
        for token, share in chosen:
            if token in children:
                continue
            children[token] = len(self.nodes)
            self.nodes.append(context.child(self.nodes[node], token))
            self.parents.append(node)
            if context.depths[self.nodes[-1]] < self.max_depth:
                heappush(self._frontier, (-probability * share, children[token]))
        return [children[token] for token, _ in chosen]


def grow(
    context: Context, trees: list[Drafted], temperature: float, noise_seed: int, random: Random
) -> None:
    """All trees of a context, an expansion of each at a time."""
    ranker = Ranker()
    while growing := [(tree, node) for tree in trees if (node := tree.next_node()) is not None]:
        logits = context.draft_logits([tree.nodes[node] for tree, node in growing])
        rows = [
            RowSampling(
                context.length + context.depths[tree.nodes[node]],
                temperature,
                0,
                1.0,
                0.0,
                noise_seed if tree.kind.startswith("coupled") else None,
                tree.width if tree.kind in RANKED else SUPPORT,
            )
            for tree, node in growing
        ]
        for (tree, _), candidates in zip(
            growing, ranker.rank(torch.stack(logits), rows), strict=True
        ):
            tree.expand(context, candidates, random)
