"""Block verification: its law by exact enumeration, its optimum, and traversal on chains."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from tests.verify.cases import Case, assert_same, random_case
from tests.verify.exact import Growth, law_over_growths
from tests.verify.toy_model import ToyModel
from wanspec_kernels import noise
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import DraftTree, Expansion
from wanspec_kernels.verify import Draws, VerifyResult, block_reference, verify_tree
from wanspec_kernels.verify.joint_reference import child_acceptance, remainder

EXACT = 1e-12
WRONG = 1e-3  # by which a planted bug must miss some text's probability

TOY = ToyModel(vocab=3, length=4, num_sources=1, seed=10)


def verify(case: Case, device: str, rule: str, backend: str = "reference") -> VerifyResult:
    return verify_tree(
        *case.arguments(device),
        rule=rule,  # type: ignore[arg-type]
        draft=case.draws(device),
        backend=backend,  # type: ignore[arg-type]
    )


def chain_case(seed: int, vocab: int) -> Case:
    """`random_case` with the first draw of each node and no other."""
    case = random_case(seed, vocab, batch=6, sources=1, max_nodes=20)
    for b, expansions in enumerate(case.expansions):
        case.expansions[b] = [
            Expansion(e.parent, e.children[:1], e.token_ids, e.weights) for e in expansions
        ]
    return case


def grow_chain(growth: Growth) -> None:
    for node in range(growth.model.length - 1):
        if growth.texts[node] and growth.texts[node][-1] >= growth.model.vocab:
            break  # a token that the target does not know
        growth.expand(node, 0, 1, True)


@pytest.mark.parametrize(
    ("temperature", "top_k", "beyond"), [(1.0, 0, 0), (0.5, 2, 0), (2.0, 0, 900)]
)
def test_the_law_is_the_targets(temperature: float, top_k: int, beyond: int) -> None:
    """And more is accepted in expectation than token by token."""
    texts, length, by_rejection = law_over_growths(
        block_reference.walk, TOY, grow_chain, True, temperature, top_k, beyond
    )
    np.testing.assert_allclose(texts, TOY.joint(temperature, top_k), atol=EXACT, rtol=0)
    assert length > by_rejection + 1e-3


def test_the_papers_example() -> None:
    """Target (1/3, 2/3), draft (2/3, 1/3) at every node, two drafts: 11/9 accepted, not 10/9."""
    model = ToyModel(vocab=2, length=3, num_sources=1, seed=0)
    for text in model.logits:
        model.logits[text] = torch.tensor([1.0, 2.0]).log()
        model.weights[0][text] = np.array([2, 1])
    _, length, by_rejection = law_over_growths(block_reference.walk, model, grow_chain, True)
    assert length == pytest.approx(11 / 9, abs=1e-6)
    assert by_rejection == pytest.approx(10 / 9, abs=1e-6)


BUGS = {
    "a prefix passes with its own probability": (
        "remainder",
        lambda a, r, q: (a, remainder(a, r, q)[1]),
    ),
    "recovered from the target": ("remainder", lambda a, r, q: (remainder(a, r, q)[0], r)),
    "recovered as token by token": (
        "remainder",
        lambda a, r, q: (remainder(a, r, q)[0], remainder(1.0, r, q)[1]),
    ),
    "each token for itself": (
        "child_acceptance",
        lambda a, r, q, x: a * child_acceptance(1.0, r, q, x),
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_seen(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_reference, *BUGS[bug])
    texts, *_ = law_over_growths(block_reference.walk, TOY, grow_chain, True)
    assert np.abs(texts - TOY.joint(1.0, 0)).max() > WRONG


def test_on_chains_as_traversal(device: str) -> None:
    """Another algorithm with the same coins: longest prefix first, or leaf to root."""
    accepted = 0
    for seed in range(12):
        case = chain_case(seed, 30)
        expected = verify(case, device, "traversal")
        accepted += int(expected.num_accepted.sum())
        assert_same(verify(case, device, "block"), expected)
    assert accepted > 20


def test_the_kernel_on_chains(device: str) -> None:
    case = chain_case(17, 40).alone(3)
    expected = verify(case, device, "block")
    assert expected.num_accepted.tolist() == [4]
    assert_same(verify(case, device, "block", "triton"), expected)


LENGTH = 4
FALSE_ALARM = 1e-4
REPLICAS = 600


def p_value_of_texts_in_rounds() -> float:
    """Texts of LENGTH tokens made by call after call, each request with one seed for all of them.

    The target says 0 or 1 with equal probability, and the draft 0 nine times in ten.
    """
    rng = np.random.default_rng(4)
    texts: list[list[int]] = [[] for _ in range(REPLICAS)]
    while unfinished := [b for b, text in enumerate(texts) if len(text) < LENGTH]:
        drafts = [[0, *rng.choice(2, 2, p=[0.9, 0.1]).tolist()] for _ in unfinished]
        tree = DraftTree.chains(drafts)
        chain = [Expansion(i, (i + 1,), (0, 1), (9, 1)) for i in range(2)]
        result = verify_tree(
            tree,
            torch.zeros(tree.num_nodes, 2),
            SamplingParams.build(len(unfinished), temperature=1.0, seed=unfinished),
            torch.tensor([len(texts[b]) for b in unfinished]),
            rule="block",
            draft=Draws.build([chain] * len(unfinished), tree, True),
        )
        for b, row, n in zip(
            unfinished, result.token_ids.tolist(), result.num_accepted.tolist(), strict=True
        ):
            texts[b] += row[: n + 1]
    observed = np.zeros((2,) * LENGTH)
    np.add.at(observed, tuple(np.array([text[:LENGTH] for text in texts]).T), 1)
    expected = REPLICAS / observed.size
    return float(chi2.sf(((observed - expected) ** 2 / expected).sum(), observed.size - 1))


def test_no_coin_is_met_again_by_the_next_call() -> None:
    """A deep node's coin has been seen when the next call starts above that node."""
    assert p_value_of_texts_in_rounds() > FALSE_ALARM


def test_coins_keyed_by_depth_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    uniform = noise.uniform
    monkeypatch.setattr(
        noise,
        "uniform",
        lambda node, position, *rest: uniform(torch.zeros_like(node), position + node, *rest),
    )
    assert p_value_of_texts_in_rounds() < FALSE_ALARM


def test_at_temperature_0_as_rejection(device: str) -> None:
    for seed in range(6):
        case = chain_case(seed, 30)
        for options in case.options:
            options["temperature"] = 0.0
        assert_same(verify(case, device, "block"), verify(case, device, "rejection"))


def test_two_draws_at_a_node_are_refused(device: str) -> None:
    """Of one source, or of two: what the rule does with them is not defined."""
    tree = DraftTree.build([([0, 1, 2], [-1, 0, 1])], device)
    arguments = (
        tree,
        torch.zeros(3, 5, device=device),
        SamplingParams.build(1, device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
    )
    one = Expansion(1, (2,), (2,), (1,))
    for two in ([Expansion(1, (2, 2), (2,), (1,))], [one, one]):
        draft = Draws.build([two], tree, True)
        with pytest.raises(
            ValueError, match="expected at most one draw a node with rule 'block', got 2 at row 1"
        ):
            verify_tree(*arguments, rule="block", draft=draft, backend="reference")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_invalid_row_ends_the_chain(bad: float, device: str) -> None:
    logits = torch.tensor([0.0, 90.0, 0.0]).repeat(4, 1)
    logits[2] = bad
    tree = DraftTree.build([([1, 1, 1, 1], [-1, 0, 1, 2])], device)
    chain = [Expansion(i, (i + 1,), (1,), (1,)) for i in range(3)]
    result = verify_tree(
        tree,
        logits.to(device),
        SamplingParams.build(1, temperature=1.0, device=device),
        torch.tensor([4], device=device),
        rule="block",
        draft=Draws.build([chain], tree, True),
    )
    assert result.status.tolist() == [1]
    assert result.token_ids.tolist() == [[1, 1, -1, -1]]


def test_a_request_does_not_see_its_batch(device: str) -> None:
    case = chain_case(17, 40)
    together = verify(case, device, "block")
    assert together.num_accepted.sum() > 0
    for b in range(len(case.trees)):
        alone = verify(case.alone(b), device, "block")
        n = alone.num_accepted
        assert torch.equal(n, together.num_accepted[b : b + 1])
        assert torch.equal(alone.token_ids[0, : n + 1], together.token_ids[b, : n + 1])


@pytest.mark.parametrize("rule", ["block", "traversal"])
def test_operators(
    rule: str,
    device: str,
    guarded_outputs: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Schema, fake and autograd registration, with static and symbolic shapes."""
    monkeypatch.setattr("wanspec_kernels.verify.operators._allocate", guarded_outputs)
    case = chain_case(8, 20)
    tree, logits, sampling, positions = case.arguments(device)
    d = case.draws(device)
    inputs = (
        logits, None, tree.token_ids, tree.parents, tree.indptr, d.indptr, d.children, d.rows,
        d.token_ids, d.weights, d.replacement, d.max_rows, positions, sampling.temperature,
        sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed, tree.max_depth,
        "reference" if device == "cpu" else "triton",
    )  # fmt: skip
    torch.library.opcheck(getattr(torch.ops.wanspec, f"verify_{rule}").default, inputs)
