"""The study of accepted length: its exact means, and that docs/ shows what was measured."""

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from bench import accepted_length_report, expected_lengths
from bench.drafted_trees import Drafted
from drafter.candidates import Candidates
from tests.verify.exact import Growth, law, rejection_length
from tests.verify.toy_model import ToyModel
from wanspec_kernels.verify import traversal_reference

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("replacement", [True, False])
def test_means_are_those_of_the_enumerated_rules(replacement: bool) -> None:
    model = ToyModel(vocab=3, length=3, num_sources=1, seed=10)
    rng = np.random.default_rng(1)
    for _ in range(5):
        growth = Growth(model, lambda p: int(rng.choice(len(p), p=p)))
        for node in range(3):
            if node < len(growth.tokens) and len(growth.texts[node]) + 1 < model.length:
                growth.expand(node, 0, 2, replacement)
        host = (growth.tokens, growth.parents)
        nothing = torch.zeros(model.vocab)
        logits = torch.stack([model.logits.get(text, nothing) for text in growth.texts])
        tree = expected_lengths.joint_tree(host, growth.expansions, replacement, logits, 1.0)
        _, length = law(traversal_reference.walk, growth, replacement, 1.0, 0)
        assert expected_lengths.by_traversal(tree, growth.parents) == pytest.approx(length)
        assert expected_lengths.by_rejection(tree, len(growth.tokens)) == pytest.approx(
            rejection_length(tree, 0)
        )


class _Trie:
    """What `Drafted.expand` asks of a context."""

    def __init__(self) -> None:
        self.depths = [0]

    def child(self, node: int, token: int) -> int:
        self.depths.append(self.depths[node] + 1)
        return len(self.depths) - 1


@pytest.mark.parametrize(
    ("kind", "num_nodes"),
    [("coupled", 8), ("coupled, pruned", 8), ("no replacement", 8), ("replacement", None)],
)
def test_budgets(kind: str, num_nodes: int | None) -> None:
    """Four expansions of two draws; a pruned tree spends as many nodes on likelier ones."""
    tree, trie, random = Drafted(kind, 2, 4, 8), _Trie(), Random(1)
    expansions = 0
    while tree.next_node() is not None:
        likely = Candidates((5, 6, 7), (0.95, 0.02, 0.01))
        tree.expand(trie, Candidates(likely.token_ids[:2], likely.probabilities[:2])
                    if kind.startswith("coupled") else likely, random)  # type: ignore[arg-type]  # fmt: skip
        expansions += 1
    assert expansions == (8 if kind == "coupled, pruned" else 4)
    if num_nodes is not None:
        assert len(tree.nodes) - 1 == num_nodes
    else:
        assert sum(len(e.children) for e in tree.expansions) == 8


def test_the_page_shows_the_results() -> None:
    results = json.loads((ROOT / "bench/results/accepted_length.json").read_text())
    page = (ROOT / "docs/accepted-length.md").read_text()
    assert accepted_length_report.table(results) in page
    assert accepted_length_report.method(results) in page
    check = results["check"]
    assert abs(check["sampled_minus_mean"]) < 4 * check["standard_error"]
