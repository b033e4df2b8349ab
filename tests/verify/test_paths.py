"""Every way through the Triton kernels gives what the reference gives."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.verify.cases import Case, assert_same, random_case
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import DraftTree
from wanspec_kernels.verify import Draws, launches, verify_tree

RULES = ("match", "rejection")


def check(case: Case, rule: str, device: str, token_bitmask: Tensor | None = None) -> None:
    options = {
        "rule": rule,
        "draft": case.draws(device) if rule == "rejection" else None,
        "token_bitmask": token_bitmask,
    }
    arguments = case.arguments(device)
    expected = verify_tree(*arguments, **options, backend="reference")  # type: ignore[arg-type]
    assert_same(verify_tree(*arguments, **options, backend="triton"), expected)  # type: ignore[arg-type]


def alter(monkeypatch: pytest.MonkeyPatch, **changes: int) -> None:
    choose_shape = launches.choose_shape
    monkeypatch.setattr(
        launches, "choose_shape", lambda *args: replace(choose_shape(*args), **changes)
    )


def with_options(case: Case, *options: dict[str, float]) -> Case:
    """The requests sample like this, in turn."""
    for b in range(len(case.options)):
        case.options[b] |= options[b % len(options)]
    return case


def plain(**options: float) -> dict[str, float]:
    return {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | options


@pytest.mark.parametrize("rule", RULES)
def test_the_largest_k_by_passes_over_the_row(
    rule: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than max_top_k, and more candidates (there are ties) than there is room for."""
    alter(monkeypatch, max_top_k=8, capacity=16)
    case = with_options(
        random_case(7, 300, dtype=torch.bfloat16),
        plain(top_k=9),
        plain(top_k=8, top_p=0.8),
        plain(top_k=3, temperature=2.0),
        plain(top_k=200, top_p=0.5, min_p=0.05),
    )
    case.logits = (case.logits / 2).round() * 2
    check(case, rule, device)


@pytest.mark.parametrize("rule", RULES)
def test_top_p_alone(rule: str, device: str) -> None:
    """A flat row, of which a small nucleus is drawn from only after several rounds."""
    case = with_options(
        random_case(8, 400, batch=4),
        plain(top_p=0.05, temperature=20.0),
        plain(top_p=0.3, temperature=5.0),
        plain(top_p=0.9),
        plain(top_p=0.5, min_p=0.2, temperature=2.0),
    )
    check(case, rule, device)


@pytest.mark.parametrize("rule", RULES)
def test_min_p_alone(rule: str, device: str) -> None:
    case = with_options(
        random_case(9, 300, batch=3),
        plain(min_p=0.3, temperature=10.0),
        plain(min_p=1.0),
        plain(min_p=1e-6, temperature=0.3),
    )
    check(case, rule, device)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("vocab", [63, 1000])
def test_a_bitmask_acts_before_anything_else(rule: str, vocab: int, device: str) -> None:
    """Wider than the vocabulary; NaN and +inf below a cleared bit are harmless."""
    case = random_case(vocab + 5, vocab, batch=4, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(vocab)
    allowed = torch.rand(case.logits.shape, generator=generator) < 0.7
    allowed |= case.logits == case.logits.amax(1, keepdim=True)
    forbidden = (~allowed).nonzero()
    case.logits[tuple(forbidden[::2].T)] = torch.nan
    case.logits[tuple(forbidden[1::2].T)] = torch.inf
    padded = torch.ones(len(allowed), (vocab + 31) // 32 * 32 + 32, dtype=torch.int64)
    padded[:, :vocab] = allowed
    words = (padded.view(len(allowed), -1, 32) << torch.arange(32)).sum(2)
    check(case, rule, device, words.to(torch.int32).to(device))
    words[:] = 0
    check(case, rule, device, words.to(torch.int32).to(device))


@pytest.mark.parametrize("rule", RULES)
def test_few_tokens_are_allowed(rule: str, device: str) -> None:
    """Fewer than top_k, and whole blocks without any."""
    case = with_options(
        random_case(13, 4099, batch=3, max_nodes=4),
        plain(top_k=50),
        plain(top_p=0.9),
        plain(),
    )
    likely = case.logits > 5
    case.logits[~likely] = -torch.inf
    check(case, rule, device)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("sign", [-1, 1])
def test_scores_that_overflow(sign: int, device: str) -> None:
    """All scores are infinite, so none of them says anything, wherever the tokens lie."""
    logits = torch.full((1, 300), sign * 3e38)
    logits[0, :130] = -torch.inf
    tree = DraftTree.build([([0], [-1])], device)
    sampling = SamplingParams.build(1, temperature=0.01, seed=3, device=device)
    positions = torch.tensor([4], device=device)
    result = verify_tree(tree, logits.to(device), sampling, positions, backend="triton")
    assert result.status.tolist() == [1]
    assert result.token_ids.tolist() == [[-1]]


@pytest.mark.parametrize("rule", RULES)
def test_bounds_rule_out_no_winner(rule: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lanes only: the winner is often none of a lane's two best bounds."""
    alter(monkeypatch, block=16)
    batch = 6
    logits = 4 * torch.randn(batch, 250, generator=torch.Generator().manual_seed(2))
    tree = DraftTree.build([([0], [-1])] * batch, device)
    sampling = SamplingParams.build(batch, temperature=1.0, seed=range(batch), device=device)
    arguments = (tree, logits.to(device), sampling, torch.arange(batch, device=device))
    draft = Draws.build([[]] * batch, tree, True) if rule == "rejection" else None
    expected = verify_tree(*arguments, rule=rule, draft=draft, backend="reference")  # type: ignore[arg-type]
    assert_same(verify_tree(*arguments, rule=rule, draft=draft, backend="triton"), expected)  # type: ignore[arg-type]


def test_one_program_walks_many_trees(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alter(monkeypatch, groups=1, max_top_k=8)
    case = random_case(14, 63, batch=7, max_nodes=5, dtype=torch.bfloat16)
    check(
        with_options(case, plain(top_k=4), plain(), plain(top_p=0.7), plain(top_k=9)),
        "match",
        device,
    )


def test_a_tree_of_1024_nodes(device: str) -> None:
    """The accepted child is far down, and has twins after it."""
    tokens = [1] * 1024
    for twin in (767, 768, 1023):
        tokens[twin] = 7
    logits = torch.zeros(len(tokens), 9)
    logits[:, 7] = 9.0
    tree = DraftTree.build([(tokens, [-1] + [0] * 1023)], device)
    for backend in ("triton", "reference"):
        result = verify_tree(
            tree,
            logits.to(device),
            SamplingParams.build(1, device=device),
            torch.tensor([1], device=device),
            backend=backend,  # type: ignore[arg-type]
        )
        assert result.accepted_nodes[0, 0] == 767
        assert result.token_ids[0, :2].tolist() == [7, 7]


def big_case(seed: int, batch: int, vocab: int, device: str) -> tuple[Case, Tensor]:
    """Logits are made on the device; every mode of sampling is in the batch."""
    rng = random.Random(seed)
    case = random_case(seed, 64, batch=batch, max_nodes=rng.randint(1, 9), sources=2)
    logits = 2 * torch.randn(case.logits.shape[0], vocab, device=device)
    logits[:, :64] += case.logits.to(device)
    for options in case.options:
        options["top_k"] = rng.choice([0, 0, 1, 50, 256, 700])
    return case, logits.to(rng.choice([torch.bfloat16, torch.float16, torch.float32]))


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 3, 50, 200])
@pytest.mark.parametrize("rule", RULES)
def test_groups_of_programs(rule: str, batch: int) -> None:
    """Replayed over other logits, each time with as many programs as the batch leaves."""
    for seed in range(3):
        case, logits = big_case(seed, batch, (50_001, 128_256, 3000)[seed], "cuda")
        tree, _, sampling, positions = case.arguments("cuda")
        draft = case.draws("cuda") if rule == "rejection" else None
        graph = torch.cuda.CUDAGraph()
        call = (tree, logits, sampling, positions)
        verify_tree(*call, rule=rule, draft=draft)  # type: ignore[arg-type]
        with torch.cuda.graph(graph):
            result = verify_tree(*call, rule=rule, draft=draft)  # type: ignore[arg-type]
        for _ in range(3):
            for _ in range(20):
                graph.replay()
            expected = verify_tree(*call, rule=rule, draft=draft, backend="reference")  # type: ignore[arg-type]
            assert_same(result, expected)
            logits.copy_(logits.roll(1, dims=0))


@pytest.mark.gpu
def test_two_batches_at_once() -> None:
    """Cooperative launches of two streams do not wait for one another's programs."""
    cases = [big_case(seed, 8, 128_256, "cuda") for seed in range(2)]
    calls = []
    for case, logits in cases:
        tree, _, sampling, positions = case.arguments("cuda")
        calls.append((tree, logits, sampling, positions))
    expected = [verify_tree(*call, backend="reference") for call in calls]
    streams = [torch.cuda.Stream() for _ in calls]
    torch.cuda.synchronize()
    results = []
    for _ in range(20):
        for call, stream in zip(calls, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(verify_tree(*call))
    torch.cuda.synchronize()
    for i, result in enumerate(results):
        assert_same(result, expected[i % 2])
