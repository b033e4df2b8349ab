"""The rejection rule: the kernel against the reference, decision by decision, and its edges."""

from collections.abc import Sequence

import pytest
import torch

from tests.verify.cases import (
    BACKENDS,
    KERNELS,
    Case,
    assert_same,
    case_that_cancels,
    random_case,
)
from wanspec_kernels import noise
from wanspec_kernels.noise import Stream
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import DraftTree, Expansion
from wanspec_kernels.verify import Draws, VerifyResult, verify_tree

WORD_NEAR_2_TO_32 = 24_335_272  # a seed
SEEDS = {"reference": 40, "triton": 3, "cuda": 40}  # an interpreted kernel is slow


def verify(case: Case, device: str, backend: str) -> VerifyResult:
    return verify_tree(
        *case.arguments(device),
        rule="rejection",
        draft=case.draws(device),
        backend=backend,  # type: ignore[arg-type]
    )


def verify_one(
    tree: tuple[Sequence[int], Sequence[int]],
    logits: torch.Tensor,
    expansions: list[Expansion],
    device: str,
    backend: str,
    *,
    replacement: bool = True,
    position: int = 9,
    **options: float,
) -> tuple[list[int], list[int]]:
    """Accepted nodes and tokens of a single request."""
    tree_on_device = DraftTree.build([tree], device)
    result = verify_tree(
        tree_on_device,
        logits.to(device),
        SamplingParams.build(1, device=device, **options),  # type: ignore[arg-type]
        torch.tensor([position], device=device),
        rule="rejection",
        draft=Draws.build([expansions], tree_on_device, replacement),
        backend=backend,  # type: ignore[arg-type]
    )
    accepted = int(result.num_accepted)
    assert result.status.tolist() == [0]
    return result.accepted_nodes[0, :accepted].tolist(), result.token_ids[
        0, : accepted + 1
    ].tolist()


def test_what_cancels_in_the_residual(device: str) -> None:
    """What a rough mass does not decide, the exact one does: three of 48 would differ."""
    for seed in (0, 3):
        case = case_that_cancels(seed, vocab=1500, batch=24)
        expected = verify(case, device, "reference")
        for backend in KERNELS:
            assert_same(verify(case, device, backend), expected)


@pytest.mark.parametrize(
    ("vocab", "dtype"),
    [(1, torch.float32), (8, torch.float32), (63, torch.float16)]
    + [(1000, torch.bfloat16), (4099, torch.float32)],
)
def test_kernel_decides_as_the_reference(vocab: int, dtype: torch.dtype, device: str) -> None:
    """Float32 masses against float64: a coin would have to fall within 1e-7 of its threshold."""
    case = random_case(vocab + 2, vocab, batch=3, dtype=dtype)
    expected = verify(case, device, "reference")
    assert expected.num_accepted.sum() > 0
    for backend in KERNELS:
        assert_same(verify(case, device, backend), expected)


def test_three_sources_of_odd_support(device: str) -> None:
    case = random_case(12, 200, batch=3, sources=3, support=21, max_nodes=30)
    expected = verify(case, device, "reference")
    for backend in KERNELS:
        assert_same(verify(case, device, backend), expected)


def test_no_draws_at_all(device: str) -> None:
    case = random_case(4, 63)
    case.expansions = [[] for _ in case.trees]
    expected = verify(case, device, "reference")
    assert expected.num_accepted.sum() == 0
    for backend in KERNELS:
        assert_same(verify(case, device, backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_accepts_the_argmax_only(backend: str, device: str) -> None:
    logits = torch.zeros(4, 50)
    logits[0, [30, 20]] = 3.0  # 20 is the lowest of the largest
    logits[2, 41] = 1.0
    expansion = Expansion(0, (1, 1, 2, 3), (20, 30, 31), (1, 9, 9))
    tree = ([1, 30, 20, 31], [-1, 0, 0, 0])
    nodes, tokens = verify_one(tree, logits, [expansion], device, backend)
    assert (nodes, tokens) == ([2], [20, 41])
    # Rejected draws never leave anything but the argmax.
    nodes, tokens = verify_one(
        tree, logits, [Expansion(0, (1, 3, 1), (20, 30, 31), (65535, 1, 1))], device, backend
    )
    assert (nodes, tokens) == ([], [20])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_without_target_mass_is_never_accepted(
    backend: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masked, filtered away, beyond the vocabulary: even by a coin as small as can be."""
    if backend == "reference":
        monkeypatch.setattr(noise, "uniform", lambda token, position, *_: 0.0 * (token + position))
    logits = torch.full((4, 9), 9.0)[:, :4]  # what lies beyond a row would be chosen
    logits[:] = torch.tensor([4.0, 3.0, -torch.inf, 1.0])
    tree = ([0, 2, 3, 7], [-1, 0, 0, 0])
    draws = [Expansion(0, (1, 2, 3), (2, 3, 7), (1, 1, 65535))]
    for seed in range(SEEDS[backend]):
        nodes, tokens = verify_one(
            tree, logits, draws, device, backend, temperature=1.0, top_k=2, seed=seed
        )
        assert nodes == []
        assert tokens[0] in (0, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_target_surely_says_is_always_accepted(backend: str, device: str) -> None:
    """p(x) = q(x) = 1: no coin may fall past the end."""
    logits = torch.tensor([0.0, 90.0, 0.0, 0.0]).repeat(2, 1)
    # At position 9 the coin of the last seed is made of a word that rounds to 2**32.
    for seed in (*range(SEEDS[backend]), WORD_NEAR_2_TO_32):
        nodes, _ = verify_one(
            ([0, 1], [-1, 0]),
            logits,
            [Expansion(0, (1,), (1,), (3,))],
            device,
            backend,
            temperature=1.0,
            seed=seed,
        )
        assert nodes == [1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_coin_decides_at_its_threshold(backend: str, device: str) -> None:
    """p(x) = 1/4 and q(x) = 1: accepted iff the coin of (seed, position, draw index) < 1/4."""
    seeds = torch.arange(SEEDS[backend])
    coins = noise.uniform(torch.tensor(0), torch.tensor(9), seeds, Stream.COIN)
    logits = torch.zeros(2, 4)
    for seed in seeds.tolist():
        nodes, tokens = verify_one(
            ([0, 2], [-1, 0]),
            logits,
            [Expansion(0, (1,), (2,), (5,))],
            device,
            backend,
            temperature=1.0,
            seed=seed,
        )
        assert (nodes == [1]) == bool(coins[seed] < 0.25)
        assert nodes or tokens[0] != 2, "q = 1 leaves nothing of a rejected token"


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_replacement_the_last_of_a_support_is_drawn_surely(
    backend: str, device: str
) -> None:
    """Two tokens share the target; both drawn: one of them is always accepted."""
    logits = torch.tensor([0.5, 0.0, -torch.inf]).repeat(3, 1)
    for seed in range(SEEDS[backend]):
        nodes, _ = verify_one(
            ([0, 0, 1], [-1, 0, 0]),
            logits,
            [Expansion(0, (1, 2), (0, 1), (1, 9))],
            device,
            backend,
            replacement=False,
            temperature=1.0,
            seed=seed,
        )
        assert len(nodes) == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["one source", "with replacement", "two sources"])
def test_later_draws_exclude_earlier_tokens(how: str, backend: str, device: str) -> None:
    """p = 1/4 each, q = (0.9, 0.1). Once 0 is rejected, p(1) is 0.15 / 0.65.

    Of one source without replacement q(1) has become 1, and a coin just below 0.15 / 0.65 accepts
    it. With replacement, or of another source, q(1) is still 0.1, and 1 is sure to be accepted.
    """
    coins = noise.uniform(torch.arange(2), torch.tensor(9), torch.arange(400)[:, None], Stream.COIN)
    threshold = 0.15 / 0.65
    q, support = (9, 1), (0, 1)
    draws = [Expansion(0, (1, 2), support, q)]
    if how == "two sources":
        draws = [Expansion(0, (1,), support, q), Expansion(0, (2,), support, q)]
    for low, high in ((0.16, threshold), (threshold, 0.35)):
        near = (coins[:, 0] > 0.25 / 0.9) & (coins[:, 1] > low) & (coins[:, 1] < high)
        seeds = near.nonzero().flatten().tolist()[: SEEDS[backend]]
        assert seeds
        for seed in seeds:
            nodes, _ = verify_one(
                ([0, 0, 1], [-1, 0, 0]),
                torch.zeros(3, 4),
                draws,
                device,
                backend,
                replacement=how == "with replacement",
                temperature=1.0,
                seed=seed,
            )
            assert nodes == ([] if how == "one source" and low == threshold else [2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_residual_that_rounding_empties_still_gives_a_token_of_the_target(
    backend: str, device: str
) -> None:
    """p = q to the last bit, tested often: a rejection leaves rounding or nothing."""
    logits = torch.tensor([0.0, 0.0, -torch.inf]).repeat(2, 1)
    for seed in range(SEEDS[backend]):
        draws = Expansion(0, (1,) * 12, (0, 1), (65535, 65535))
        _, tokens = verify_one(
            ([0, 1], [-1, 0]), logits, [draws], device, backend, temperature=1.0, seed=seed
        )
        assert tokens[0] in (0, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_invalid_row_is_reported(bad: float, backend: str, device: str) -> None:
    logits = torch.full((2, 70), -torch.inf)
    logits[0, 8] = 1.0
    if bad != -torch.inf:
        logits[1] = 0.0
    logits[1, 69] = bad
    tree = DraftTree.build([([1, 8], [-1, 0])], device)
    result = verify_tree(
        tree,
        logits.to(device),
        SamplingParams.build(1, temperature=1.0, device=device),
        torch.tensor([4], device=device),
        rule="rejection",
        draft=Draws.build([[Expansion(0, (1,), (8,), (1,))]], tree, True),
        backend=backend,  # type: ignore[arg-type]
    )
    assert result.status.tolist() == [1]
    assert result.token_ids.tolist() == [[8, -1]]


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_logits_near_the_largest_float(
    filters: dict[str, float], backend: str, device: str
) -> None:
    """Only differences are divided by the temperature, so the largest logit wins."""
    logits = torch.full((2, 500), -3e38)
    logits[:, [400, 7]] = torch.tensor([3e38, 2e38])
    draw = Expansion(0, (1,), (7,), (1,))
    tree = ([1, 7], [-1, 0])
    found = verify_one(tree, logits, [draw], device, backend, temperature=0.01, **filters)
    assert found == ([], [400])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_request_does_not_see_its_batch(backend: str, device: str) -> None:
    case = random_case(21, 63, batch=3)
    together = verify(case, device, backend)
    for b in range(3):
        alone = verify(case.alone(b), device, backend)
        n = alone.num_accepted
        assert torch.equal(n, together.num_accepted[b : b + 1])
        assert torch.equal(alone.token_ids[0, : n + 1], together.token_ids[b, : n + 1])
