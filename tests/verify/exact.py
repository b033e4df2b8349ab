"""Exact laws: every random choice of a process enumerated, with its probability."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from tests.verify.toy_model import Text, ToyModel
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import DraftTree, Expansion
from wanspec_kernels.verify import Draws
from wanspec_kernels.verify.joint_reference import (
    Accept,
    JointTree,
    Walk,
    child_acceptance,
    remainder,
)
from wanspec_kernels.verify.reference import _samplings

Choose = Callable[[Sequence[float]], int]
"""Takes probabilities, gives an index."""
T = TypeVar("T")


class _Script:
    """One run's choices: those prescribed, then the first possible one each time."""

    def __init__(self, prescribed: tuple[int, ...]) -> None:
        self.prescribed = prescribed
        self.taken: list[int] = []
        self.others: list[tuple[int, ...]] = []  # runs that this one did not take
        self.probability = 1.0

    def choose(self, probabilities: Sequence[float]) -> int:
        if len(self.taken) < len(self.prescribed):
            chosen = self.prescribed[len(self.taken)]
        else:
            chosen, *others = [i for i, p in enumerate(probabilities) if p > 0]
            self.others += [(*self.taken, other) for other in others]
        self.taken.append(chosen)
        self.probability *= probabilities[chosen]
        return chosen


def enumerate_choices(process: Callable[[Choose], T]) -> Iterator[tuple[float, T]]:
    """Every outcome of a process with its probability; it is run once for each."""
    pending: list[tuple[int, ...]] = [()]
    while pending:
        script = _Script(pending.pop())
        outcome = process(script.choose)
        pending += script.others
        yield script.probability, outcome


class Growth:
    """A drafter's tree over a ToyModel as it grows: draws may depend on what was drawn before."""

    def __init__(self, model: ToyModel, choose: Choose, beyond: int = 0) -> None:
        self.model = model
        self.choose = choose
        self.beyond = beyond  # weight that every source gives to a token the target does not know
        self.tokens, self.parents, self.texts = [0], [-1], [()]
        self.expansions: list[Expansion] = []

    def expand(self, node: int, source: int, num_draws: int, replacement: bool) -> list[int]:
        """The children that `source` draws at `node`; equal tokens share a child."""
        weights = {
            token: int(w)
            for token, w in enumerate(self.model.weights[source][self.texts[node]])
            if w
        }
        if self.beyond:
            weights[self.model.vocab] = self.beyond
        left, children = dict(weights), []
        while left and len(children) < num_draws:
            names = list(left)
            total = sum(left.values())
            token = names[self.choose([left[name] / total for name in names])]
            if not replacement:
                del left[token]
            known = [i for i, p in enumerate(self.parents) if (p, self.tokens[i]) == (node, token)]
            if not known:
                known = [len(self.tokens)]
                self.tokens.append(token)
                self.parents.append(node)
                self.texts.append((*self.texts[node], token))
            children.append(known[0])
        self.expansions.append(
            Expansion(node, tuple(children), tuple(weights), tuple(weights.values()))
        )
        return children

    def joint_tree(self, replacement: bool, **options: float) -> JointTree:
        tree = DraftTree.build([(self.tokens, self.parents)])
        draws = Draws.build([self.expansions], tree, replacement)
        sampling = SamplingParams.build(1, **options)  # type: ignore[arg-type]
        columns = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        nothing = torch.zeros(self.model.vocab)  # after a token that the target does not know
        logits = torch.stack([self.model.logits.get(text, nothing) for text in self.texts])
        return JointTree(
            0, _samplings(*columns)[0], logits, None, tree.token_ids, draws.indptr, draws.children,
            draws.rows, draws.token_ids, draws.weights, draws.replacement,
        )  # fmt: skip


def law(
    walk: Walk, growth: Growth, replacement: bool, temperature: float, top_k: int
) -> tuple[np.ndarray, float]:
    """Of the text that one tree gives ([vocab] * length, finished by the target); mean accepted."""
    model = growth.model
    tree = growth.joint_tree(replacement, temperature=temperature, top_k=top_k)
    texts = np.zeros((model.vocab,) * model.length)
    length = 0.0

    def verified(choose: Choose) -> tuple[Text, torch.Tensor]:
        nodes, target = walk(tree, lambda _, p: choose([p, 1 - p]) == 0)
        assert target is not None
        return growth.texts[nodes[-1]] if nodes else (), target

    for probability, (text, following) in enumerate_choices(verified):
        length += probability * len(text)
        for token, p in enumerate(following.tolist()):
            add_completed(texts, model, (*text, token), probability * p, temperature, top_k)
    return texts, length


def add_completed(
    texts: np.ndarray, model: ToyModel, text: Text, mass: float, temperature: float, top_k: int
) -> None:
    if mass == 0:
        return
    if len(text) == model.length:
        texts[text] += mass
        return
    for token, p in enumerate(model.target(text, temperature, top_k)):
        add_completed(texts, model, (*text, token), mass * p, temperature, top_k)


def law_over_growths(
    walk: Walk,
    model: ToyModel,
    grow: Callable[[Growth], None],
    replacement: bool,
    temperature: float = 1.0,
    top_k: int = 0,
    beyond: int = 0,
) -> tuple[np.ndarray, float, float]:
    """Law of the text over all draws and coins; mean accepted by `walk` and by `rejection`."""

    def grown(choose: Choose) -> Growth:
        growth = Growth(model, choose, beyond)
        grow(growth)
        return growth

    texts = np.zeros((model.vocab,) * model.length)
    length = by_rejection = total = 0.0
    for probability, growth in enumerate_choices(grown):
        some, mean = law(walk, growth, replacement, temperature, top_k)
        texts += probability * some
        length += probability * mean
        tree = growth.joint_tree(replacement, temperature=temperature, top_k=top_k)
        by_rejection += probability * rejection_length(tree, 0)
        total += probability
    assert abs(total - 1) < 1e-9
    return texts, length, by_rejection


def rejection_walk(tree: JointTree, accept: Accept) -> tuple[list[int], torch.Tensor | None]:
    """The rule `rejection` over the same trees."""
    nodes = [0]
    while True:
        target = tree.target(nodes[-1])
        assert target is not None
        for child, draft in tree.draws(nodes[-1]):
            p = child_acceptance(1.0, target, draft, tree.token(child))
            if p > 0 and accept(child, p):
                nodes.append(child)
                break
            _, target = remainder(1.0, target, draft)
        else:
            return nodes[1:], target


def rejection_length(tree: JointTree, node: int) -> float:
    """Mean accepted below a node under `rejection`, of one tree."""
    residual = tree.target(node)
    assert residual is not None
    length, untested = 0.0, 1.0
    for child, draft in tree.draws(node):
        p = child_acceptance(1.0, residual, draft, tree.token(child))
        if p > 0:
            length += untested * p * (1 + rejection_length(tree, child))
        untested *= 1 - p
        _, residual = remainder(1.0, residual, draft)
    return length
