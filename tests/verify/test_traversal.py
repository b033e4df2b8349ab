"""Traversal verification: its law by exact enumeration of draws and coins, and its edges."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.verify.cases import Case, assert_same, random_case
from tests.verify.exact import Growth, law_over_growths, rejection_walk
from tests.verify.toy_model import ToyModel
from wanspec_kernels import noise
from wanspec_kernels.noise import Stream
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import DraftTree, Expansion
from wanspec_kernels.verify import Draws, VerifyResult, traversal_reference, verify_tree
from wanspec_kernels.verify.joint_reference import child_acceptance, remainder

EXACT = 1e-12
WRONG = 1e-3  # by which a planted bug must miss some text's probability


BACKENDS = ("reference", "triton")
SEEDS = {"reference": 30, "triton": 3}  # an interpreted kernel is slow


def verify(
    case: Case, device: str, rule: str = "traversal", backend: str = "reference"
) -> VerifyResult:
    return verify_tree(
        *case.arguments(device),
        rule=rule,  # type: ignore[arg-type]
        draft=case.draws(device),
        backend=backend,  # type: ignore[arg-type]
    )


def full(sources: int, num_draws: int, replacement: bool) -> Callable[[Growth], None]:
    """Every node above the last level expanded."""

    def grow(growth: Growth) -> None:
        node = 0
        while node < len(growth.tokens):
            known = max(growth.texts[node], default=0) < growth.model.vocab
            if known and len(growth.texts[node]) + 1 < growth.model.length:
                for source in range(sources):
                    growth.expand(node, source, num_draws, replacement)
            node += 1

    return grow


def adaptive(growth: Growth) -> None:
    """Where it grows depends on all that was drawn before; no draw is ever taken back."""
    children = growth.expand(0, 0, 2, True)
    first, last = min(children), max(children)
    if growth.tokens[last] != 1:
        below = growth.expand(last, 0, 1, True)
        if growth.tokens[below[0]] != 0:
            growth.expand(first, 1, 2, True)
            growth.expand(0, 1, 1, True)  # late, and only because of what the others drew
    elif growth.tokens[first] != 0:
        growth.expand(first, 0, 1, True)


def cousins_that_drop_each_other(growth: Growth) -> None:
    """One keeps its draws only if the other drew well: `rejection`, which visits one of the two,
    would not mind."""
    children = sorted(set(growth.expand(0, 0, 2, False)))
    if len(children) < 2:
        return
    start = len(growth.expansions)
    drawn = [growth.tokens[growth.expand(child, 0, 1, False)[0]] for child in children]
    dropped = [drawn[1] != 0, drawn[0] != 0]
    growth.expansions[start:] = [
        e for e, drop in zip(growth.expansions[start:], dropped, strict=True) if not drop
    ]


TOY = ToyModel(vocab=3, length=3, num_sources=2, seed=10)


@pytest.mark.parametrize(
    ("grow", "replacement", "temperature", "top_k", "beyond"),
    [
        (full(1, 2, False), False, 1.0, 0, 0),
        (full(1, 2, False), False, 0.5, 2, 0),
        (full(2, 1, True), True, 1.0, 0, 0),
        (full(1, 1, True), True, 1.0, 0, 400),
        (adaptive, True, 1.0, 0, 0),
    ],
)
def test_the_law_is_the_targets(
    grow: Callable[[Growth], None], replacement: bool, temperature: float, top_k: int, beyond: int
) -> None:
    """And more is accepted in expectation than under `rejection`.

    Not a theorem for trees whose shape depends on draws: of ToyModel's first 15 seeds, `adaptive`
    gives 0.002 tokens less with seed 5.
    """
    texts, length, by_rejection = law_over_growths(
        traversal_reference.walk, TOY, grow, replacement, temperature, top_k, beyond
    )
    np.testing.assert_allclose(texts, TOY.joint(temperature, top_k), atol=EXACT, rtol=0)
    assert length > by_rejection + 1e-3


def test_the_law_three_levels_down() -> None:
    model = ToyModel(vocab=2, length=4, num_sources=1, seed=8)

    def grow(growth: Growth) -> None:
        for node in range(3):
            if node < len(growth.tokens):
                growth.expand(node, 0, 2, True)
        if len(growth.tokens) > 4:
            growth.expand(4, 0, 1, True)

    texts, length, by_rejection = law_over_growths(traversal_reference.walk, model, grow, True)
    np.testing.assert_allclose(texts, model.joint(1.0, 0), atol=EXACT, rtol=0)
    assert length > by_rejection


def test_draws_dropped_for_each_others_sake_are_seen() -> None:
    """What docs/design.md asks of a budget is more than `rejection` needs, and is not idle."""
    law = {
        walk: law_over_growths(walk, TOY, cousins_that_drop_each_other, False)[0]
        for walk in (rejection_walk, traversal_reference.walk)
    }
    joint = TOY.joint(1.0, 0)
    np.testing.assert_allclose(law[rejection_walk], joint, atol=EXACT, rtol=0)
    assert np.abs(law[traversal_reference.walk] - joint).max() > WRONG


BUGS = {
    "acceptance kept after a rejection": ("remainder", lambda a, r, q: (a, remainder(a, r, q)[1])),
    "the acceptance is the mass left": (
        "remainder",
        lambda a, r, q: (
            float((a * r - q).clamp(min=0).sum()) if a < 1 else a,
            remainder(a, r, q)[1],
        ),
    ),
    "recovered from the target": ("remainder", lambda a, r, q: (remainder(a, r, q)[0], r)),
    "the residual of a node that is sure": (
        "remainder",
        lambda a, r, q: (remainder(a, r, q)[0], remainder(1.0, r, q)[1]),
    ),
    "acceptance of the parent left out": (
        "child_acceptance",
        lambda a, r, q, x: child_acceptance(1.0, r, q, x),
    ),
    "each token for itself": (
        "child_acceptance",
        lambda a, r, q, x: a * child_acceptance(1.0, r, q, x),
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_seen(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traversal_reference, *BUGS[bug])
    texts, *_ = law_over_growths(traversal_reference.walk, TOY, full(2, 1, True), True)
    assert np.abs(texts - TOY.joint(1.0, 0)).max() > WRONG


def test_at_temperature_0_as_rejection(device: str) -> None:
    """Both follow the largest logit as far as draws do."""
    accepted = 0
    for seed in range(10):
        case = random_case(seed, 40, batch=4)
        for options in case.options:
            options["temperature"] = 0.0
        expected = verify(case, device, "rejection")
        accepted += int(expected.num_accepted.sum())
        assert_same(verify(case, device), expected)
    assert accepted > 10


def verify_one(
    tree: tuple[list[int], list[int]],
    logits: torch.Tensor,
    expansions: list[Expansion],
    device: str,
    *,
    replacement: bool = True,
    backend: str = "reference",
    **options: float,
) -> VerifyResult:
    on_device = DraftTree.build([tree], device)
    return verify_tree(
        on_device,
        logits.to(device),
        SamplingParams.build(1, device=device, **options),  # type: ignore[arg-type]
        torch.tensor([9], device=device),
        rule="traversal",
        draft=Draws.build([expansions], on_device, replacement),
        backend=backend,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("vocab", "dtype", "seed"),
    [(1, torch.float32, 2), (12, torch.float16, 13), (63, torch.bfloat16, 12)],
)
def test_kernels_decide_as_the_reference(
    vocab: int, dtype: torch.dtype, seed: int, device: str
) -> None:
    """Exact masses against float64: a coin would have to fall within 1e-7 of its threshold."""
    case = random_case(seed, vocab, batch=3, support=4, max_nodes=7, dtype=dtype)
    expected = verify(case, device)
    assert expected.num_accepted.sum() > 0
    assert_same(verify(case, device, backend="triton"), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab", [1000, 4099])
def test_kernels_decide_as_the_reference_often(vocab: int) -> None:
    for seed in range(20):
        case = random_case(seed, vocab, batch=8, sources=3, support=21, max_nodes=40)
        assert_same(verify(case, "cuda", backend="triton"), verify(case, "cuda"))


@pytest.mark.gpu
def test_captured_in_a_graph() -> None:
    case = random_case(3, 40, batch=3)
    tree, logits, sampling, positions = case.arguments("cuda")
    draft = case.draws("cuda")
    verify_tree(tree, logits, sampling, positions, rule="traversal", draft=draft)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = verify_tree(tree, logits, sampling, positions, rule="traversal", draft=draft)
    for shift in (0, 7):
        logits.copy_(logits.roll(shift, dims=1))
        graph.replay()
        assert_same(
            result,
            verify_tree(
                tree, logits, sampling, positions, rule="traversal", draft=draft,
                backend="reference",
            ),
        )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_coins_are_of_the_first_position_and_of_the_node(backend: str, device: str) -> None:
    """p = 1/4 and q = 1 twice: node 2 has acceptance 1/16; rejected, it leaves node 1 3/15."""
    logits = torch.zeros(3, 4)
    chain = [Expansion(i, (i + 1,), (2,), (5,)) for i in range(2)]
    seeds = torch.arange(120)
    coins = noise.uniform(torch.arange(3)[:, None], torch.tensor(9), seeds, Stream.COIN)
    lengths = torch.where(coins[2] < 1 / 16, 2, (coins[1] < 3 / 15).int())
    assert lengths.unique().tolist() == [0, 1, 2]
    # Some of each length.
    order = torch.cat([(lengths == n).nonzero().flatten()[: SEEDS[backend] // 3] for n in range(3)])
    for seed in order.tolist():
        result = verify_one(
            ([0, 2, 2], [-1, 0, 1]),
            logits,
            chain,
            device,
            backend=backend,
            temperature=1.0,
            seed=seed,
        )
        expected = int(lengths[seed])
        assert result.num_accepted.tolist() == [expected]
        following = int(result.token_ids[0, expected])
        gumbel = noise.gumbel_row(
            4, torch.tensor(9 + expected), torch.tensor(seed), Stream.RESIDUAL
        )
        if expected < 2:
            gumbel[2] = -torch.inf  # q = 1 leaves nothing of a rejected token
        assert following == int(gumbel.argmax())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_without_target_mass_is_never_accepted(
    backend: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masked, filtered away, beyond the vocabulary, nor what hangs from it: whatever the coin."""
    if backend == "reference":
        monkeypatch.setattr(
            noise, "uniform", lambda token, position, *_: 0.0 * (token + position).double()
        )
    logits = torch.tensor([4.0, 3.0, -torch.inf, 1.0]).repeat(5, 1)
    logits[4] = torch.nan  # below a node that cannot be accepted: not on the path
    tree = ([0, 2, 3, 7, 0], [-1, 0, 0, 0, 1])
    draws = [Expansion(0, (1, 2, 3), (2, 3, 7), (1, 1, 65535)), Expansion(1, (4,), (0,), (1,))]
    for seed in range(SEEDS[backend]):
        result = verify_one(
            tree, logits, draws, device, backend=backend, temperature=1.0, top_k=2, seed=seed
        )
        assert result.status.tolist() == [0]
        assert result.num_accepted.tolist() == [0]
        assert int(result.token_ids[0, 0]) in (0, 1)


def test_a_rejected_token_is_not_accepted_again(device: str) -> None:
    """Neither as another draw of its child nor as another child: its residual is exactly 0."""
    logits = torch.tensor([0.0, 0.4, -0.3, 0.9]).repeat(3, 1)
    draws = [
        Expansion(0, (1, 1), (0, 1), (3, 1)),
        Expansion(0, (2, 1), (0, 3), (7, 9)),
    ]
    chosen = set()
    for seed in range(60):
        result = verify_one(
            ([0, 0, 0], [-1, 0, 0]), logits, draws, device, temperature=1.0, seed=seed
        )
        chosen.add(int(result.accepted_nodes[0, 0]))
        if result.num_accepted == 0:
            assert int(result.token_ids[0, 0]) != 0
    assert chosen == {-1, 1}


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_target_surely_says_is_always_accepted(backend: str, device: str) -> None:
    """p(x) = q(x) = 1, ten deep: neither a coin past the end nor a leaf's rejection."""
    logits = torch.tensor([0.0, 90.0, 0.0, 0.0]).repeat(11, 1)
    chain = [Expansion(i, (i + 1,), (1,), (3,)) for i in range(10)]
    tree = ([1] * 11, list(range(-1, 10)))
    for seed in range(SEEDS[backend] // 3):
        result = verify_one(
            tree, logits, chain, device, backend=backend, temperature=1.0, seed=seed
        )
        assert result.token_ids.tolist() == [[1] * 11]


def test_both_tokens_of_the_target_drawn_without_replacement(device: str) -> None:
    logits = torch.tensor([0.5, 0.0, -torch.inf]).repeat(3, 1)
    for seed in range(30):
        result = verify_one(
            ([0, 0, 1], [-1, 0, 0]),
            logits,
            [Expansion(0, (1, 2), (0, 1), (1, 9))],
            device,
            replacement=False,
            temperature=1.0,
            seed=seed,
        )
        assert result.num_accepted.tolist() == [1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_invalid_row_is_a_leaf_without_a_following_token(
    bad: float, backend: str, device: str
) -> None:
    """The first branch's row is invalid: accepted as before or not, and reported only if it is."""
    logits = torch.tensor([0.0, 0.0, -torch.inf]).repeat(4, 1)
    logits[1] = bad
    tree = ([0, 0, 1, 1], [-1, 0, 0, 1])
    draws = [Expansion(0, (1, 2), (0, 1), (9, 1)), Expansion(1, (3,), (1,), (1,))]
    statuses = []
    for seed in range(0, 30, 10 if backend == "triton" else 1):
        coin = noise.uniform(torch.tensor(1), torch.tensor(9), torch.tensor(seed), Stream.COIN)
        result = verify_one(
            tree,
            logits,
            draws,
            device,
            replacement=False,
            backend=backend,
            temperature=1.0,
            seed=seed,
        )
        hit = bool(coin < 0.5 / 0.9)
        assert result.status.tolist() == [int(hit)]
        if hit:
            assert result.token_ids.tolist() == [[0, -1, -1]]
        else:
            assert result.accepted_nodes[0].tolist() == [2, -1]
            assert int(result.token_ids[0, 1]) in (0, 1)
        statuses.append(hit)
    assert len(set(statuses)) == 2
    logits[0] = bad
    result = verify_one(
        tree, logits, draws, device, replacement=False, backend=backend, temperature=1.0
    )
    assert result.status.tolist() == [1]
    assert result.token_ids.tolist() == [[-1, -1, -1]]


def test_a_deep_chain(device: str) -> None:
    """Deeper than Python's stack."""
    depth = 1020
    logits = torch.zeros(depth + 1, 2)
    chain = [Expansion(i, (i + 1,), (0, 1), (1, 1)) for i in range(depth)]
    tree = ([0] * (depth + 1), list(range(-1, depth)))
    result = verify_one(tree, logits, chain, device, temperature=1.0)
    assert result.num_accepted.tolist() == [depth]


def test_a_request_does_not_see_its_batch(device: str) -> None:
    case = random_case(5, 63, batch=3)
    together = verify(case, device)
    assert together.num_accepted.sum() > 0
    for b in range(3):
        alone = verify(case.alone(b), device)
        n = alone.num_accepted
        assert torch.equal(n, together.num_accepted[b : b + 1])
        assert torch.equal(alone.token_ids[0, : n + 1], together.token_ids[b, : n + 1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tree_without_rows_and_one_without_draws(backend: str, device: str) -> None:
    tree = DraftTree(
        *(
            torch.tensor(column, dtype=torch.int32, device=device)
            for column in ([5], [-1], [0, 0, 1])
        ),
        max_nodes=1,
        max_depth=0,
    )
    result = verify_tree(
        tree,
        torch.tensor([[0.0, 1.0]], device=device),
        SamplingParams.build(2, device=device),
        torch.zeros(2, dtype=torch.int64, device=device),
        rule="traversal",
        draft=Draws.build([[], []], tree, True),
        backend=backend,  # type: ignore[arg-type]
    )
    assert result.token_ids.tolist() == [[-1], [1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_grammars_mask(backend: str, device: str) -> None:
    """Token 0, likeliest of the target and certain of the draft, is forbidden at the root."""
    logits = torch.tensor([9.0, 0.0, 0.0]).repeat(2, 1)
    tree = DraftTree.build([([0, 0], [-1, 0])], device)
    result = verify_tree(
        tree,
        logits.to(device),
        SamplingParams.build(1, temperature=1.0, device=device),
        torch.tensor([4], device=device),
        rule="traversal",
        draft=Draws.build([[Expansion(0, (1,), (0,), (1,))]], tree, True),
        token_bitmask=torch.tensor([[0b110], [0b111]], dtype=torch.int32, device=device),
        backend=backend,  # type: ignore[arg-type]
    )
    assert result.num_accepted.tolist() == [0]
    assert int(result.token_ids[0, 0]) in (1, 2)


@pytest.mark.parametrize("rule", ["block", "traversal"])
def test_the_cuda_extension_has_no_such_rule(rule: str, device: str) -> None:
    case = random_case(1, 8, batch=1, sources=1)
    with pytest.raises(RuntimeError, match=f"rule '{rule}': expected backend 'auto', 'triton'"):
        verify(case, device, rule, "cuda")
