"""Texts made with any rule are distributed as the target's: against exact enumeration.

Every replica drafts trees anew, so draws, coins and noise are all averaged over. A sound rule is
rejected with probability FALSE_ALARM a test; the seeds are fixed. Each planted bug must be
rejected.
"""

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from tests.verify.toy_model import Text, ToyModel
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import DraftTree
from wanspec_kernels.verify import Draws, verify_tree

FALSE_ALARM = 1e-4
REPLICAS = 800  # enough to see each planted bug

# (temperature, top_k) alternate between the requests of a batch.
MIXED = ((1.0, 0), (0.7, 3))


def p_value(texts: list[Text], joint: np.ndarray) -> float:
    """Of Pearson's test; rare texts share a cell."""
    observed = np.zeros(joint.shape)
    np.add.at(observed, tuple(np.array(texts).T), 1)
    if observed[joint == 0].any():
        return 0.0
    expected = joint * len(texts)
    rare = expected < 5
    o = np.append(observed[~rare], observed[rare].sum())
    e = np.append(expected[~rare], expected[rare].sum())
    o, e = o[e > 0], e[e > 0]
    return float(chi2.sf(((o - e) ** 2 / e).sum(), len(e) - 1))


def verified_texts(
    model: ToyModel, replicas: int, rule: str, replacement: bool, device: str
) -> list[list[Text]]:
    """For each entry of MIXED, the texts of its requests."""
    rng = np.random.default_rng(1)
    num_draws = 1 if rule == "block" else 2
    drafts = [model.draft(rng, num_draws, replacement) for _ in range(replicas)]
    tree = DraftTree.build([(tokens, parents) for tokens, parents, _, _ in drafts], device)
    temperatures, top_ks = zip(*MIXED, strict=True)
    repeats = replicas // len(MIXED)
    result = verify_tree(
        tree,
        torch.stack([model.logits[text] for _, _, texts, _ in drafts for text in texts]).to(device),
        SamplingParams.build(
            replicas,
            temperature=temperatures * repeats,
            top_k=top_ks * repeats,
            seed=range(1000, 1000 + replicas),
            device=device,
        ),
        torch.full((replicas,), 5, device=device),
        rule=rule,  # type: ignore[arg-type]
        draft=Draws.build([expansions for *_, expansions in drafts], tree, replacement)
        if rule != "match"
        else None,
    )
    result.raise_for_status()
    assert 0.2 < result.num_accepted.float().mean() / (model.length - 1) < 0.99
    texts = []
    for row, n in zip(result.token_ids.tolist(), result.num_accepted.tolist(), strict=True):
        temperature, top_k = MIXED[len(texts) % len(MIXED)]
        texts.append(model.finish(row[: n + 1], rng, temperature, top_k))
    return [texts[i :: len(MIXED)] for i in range(len(MIXED))]


@pytest.mark.parametrize(
    ("rule", "replacement"),
    [("match", True), ("rejection", True), ("rejection", False)]
    + [("block", True), ("traversal", False)],
)
def test_joint_distribution(rule: str, replacement: bool, device: str) -> None:
    model = ToyModel(vocab=5, length=3, num_sources=1 if rule == "block" else 2, seed=5)
    # Under match the text equals plain sampling, which test_match.py tests exactly.
    replicas = 20_000 if device == "cuda" else len(MIXED) * (200 if rule == "match" else REPLICAS)
    texts = verified_texts(model, replicas, rule, replacement, device)
    for (temperature, top_k), some in zip(MIXED, texts, strict=True):
        assert p_value(some, model.joint(temperature, top_k)) > FALSE_ALARM


def walk(
    model: ToyModel, replacement: bool, rng: np.random.Generator, bug: str | None
) -> list[int]:
    """The rejection rule in numpy, at temperature 1, with one mistake of choice."""
    tokens, _, texts, expansions = model.draft(rng, 2, replacement)
    node, path = 0, []
    while True:
        target = model.target(texts[node], 1.0, 0)
        residual, child = target, -1
        here = [e for e in expansions if e.parent == node]
        all_drawn = [tokens[c] for e in here for c in e.children]
        for expansion in here:
            q = np.zeros(model.vocab)
            q[list(expansion.token_ids)] = expansion.weights
            q /= q.sum()
            for candidate in expansion.children:
                x = tokens[candidate]
                coin = rng.random()
                if bug == "coins reuse the draft's noise":
                    below = q[:x].sum()
                    coin = below + coin * q[x]
                available = residual[x]
                if bug == "duplicates counted twice":
                    available *= all_drawn.count(x)
                if coin * q[x] < available:
                    child = candidate
                    break
                if bug != "every draw meets the unmodified target":
                    residual = np.maximum(residual - q, 0)
                    if bug != "residual not renormalised":
                        residual = residual / residual.sum() if residual.any() else target
                if not replacement:
                    q[x] = 0
                    if bug != "draft not renormalised without replacement":
                        q /= max(q.sum(), 1e-300)
            if child >= 0:
                break
        if child < 0:
            left = residual if residual.any() and bug != "recovered from the target" else target
            return [*path, int(rng.choice(model.vocab, p=left / left.sum()))]
        path.append(tokens[child])
        node = child


@pytest.mark.parametrize(
    ("bug", "replacement"),
    [
        ("every draw meets the unmodified target", True),
        ("every draw meets the unmodified target", False),
        ("duplicates counted twice", True),
        ("coins reuse the draft's noise", True),
        ("residual not renormalised", False),
        ("recovered from the target", True),
        ("draft not renormalised without replacement", False),
    ],
)
def test_a_planted_bug_is_seen(bug: str, replacement: bool) -> None:
    assert p_value_of_twin(bug, replacement) < FALSE_ALARM


@pytest.mark.parametrize("replacement", [True, False])
def test_the_twin_without_a_bug_is_sound(replacement: bool) -> None:
    assert p_value_of_twin(None, replacement) > FALSE_ALARM


def p_value_of_twin(bug: str | None, replacement: bool) -> float:
    model = ToyModel(vocab=5, length=3, num_sources=2, seed=5)
    rng = np.random.default_rng(2)
    texts = []
    for _ in range(REPLICAS):
        path = walk(model, replacement, rng, bug)
        texts.append(model.finish(path, rng, 1.0, 0))
    return p_value(texts, model.joint(1.0, 0))
