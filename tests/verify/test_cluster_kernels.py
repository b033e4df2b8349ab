"""The CUDA kernels: every cluster size, every way through the filters, graphs and compilation."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.verify.cases import (
    HAS_CUDA_KERNELS,
    Case,
    assert_same,
    case_that_cancels,
    random_case,
)
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import DraftTree, Expansion
from wanspec_kernels.verify import Draws, VerifyResult, operators, verify_tree

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_CUDA_KERNELS, reason="needs the CUDA extension and clusters"),
]
RULES = ("match", "rejection")
CLUSTERS = (1, 2, 4, 8, 16)


def run(
    arguments: tuple[DraftTree, Tensor, SamplingParams, Tensor],
    draft: Draws | None,
    token_bitmask: Tensor | None,
    cluster: int,
) -> VerifyResult:
    """The operator below `verify_tree`, with clusters of a given size."""
    tree, logits, s, positions = arguments
    outputs = operators._allocate(logits, tree.indptr, tree.max_depth)
    sampling = (positions, s.temperature, s.top_k, s.top_p, s.min_p, s.seed)
    head: tuple[Any, ...] = (*outputs, logits, token_bitmask, tree.token_ids)
    if draft is None:
        torch.ops.wanspec.verify_match_cuda(
            *head, tree.parents, tree.indptr, *sampling, tree.max_depth, cluster
        )
    else:
        d = draft
        tables = (d.indptr, d.children, d.rows, d.token_ids, d.weights, d.replacement)
        torch.ops.wanspec.verify_rejection_cuda(
            *head, tree.indptr, *tables, d.max_rows, *sampling, tree.max_depth, cluster
        )
    return VerifyResult(*outputs)


def assert_all_clusters_agree(
    case: Case, rule: str, clusters: tuple[int, ...] = CLUSTERS, token_bitmask: Tensor | None = None
) -> None:
    draft = case.draws("cpu") if rule == "rejection" else None
    expected = verify_tree(
        *case.arguments("cpu"),
        rule=rule,  # type: ignore[arg-type]
        draft=draft,
        token_bitmask=token_bitmask,
        backend="reference",
    )
    arguments = case.arguments("cuda")
    draft = case.draws("cuda") if rule == "rejection" else None
    mask = None if token_bitmask is None else token_bitmask.cuda()
    for cluster in clusters:
        result = run(arguments, draft, mask, cluster)
        on_cpu = VerifyResult(*(x.cpu() for x in vars(result).values()))
        assert_same(on_cpu, expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1, 63, 1000, 4099, 16_384, 33_001])
def test_every_cluster_size(vocab: int, dtype: torch.dtype, rule: str) -> None:
    for seed in range(4):
        assert_all_clusters_agree(random_case(vocab + seed, vocab, batch=6, dtype=dtype), rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("vocab", [63, 5000])
def test_bitmask(vocab: int, rule: str) -> None:
    case = random_case(vocab, vocab, batch=6)
    shape = (case.logits.shape[0], (vocab + 31) // 32 + 1)
    mask = torch.randint(-(1 << 31), 1 << 31, shape, generator=torch.Generator().manual_seed(1))
    mask = mask.int()
    mask[::5] = 0  # nothing allowed: an invalid row
    # What is forbidden may be anything.
    ids = torch.arange(vocab)
    forbidden = (mask[:, ids >> 5] >> (ids & 31)) & 1 == 0
    case.logits[forbidden & (torch.rand(forbidden.shape) < 0.1)] = torch.nan
    assert_all_clusters_agree(case, rule, token_bitmask=mask)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 50, "top_p": 0.9},
        {"top_k": 128},
        {"top_k": 129},  # more than candidates are collected for
        {"top_k": 700, "top_p": 0.5, "min_p": 0.001},
        {"top_p": 0.3},
        {"top_p": 0.95, "min_p": 0.01},
        {"top_p": 1e-6},  # less than rough masses can tell apart
        {"top_p": 0.999999},
        {"min_p": 0.05},
        {"top_k": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("row", ["flat", "ties", "peak", "few", "huge"])
def test_filters(row: str, options: dict[str, float], rule: str) -> None:
    """Flat rows, whose filters keep much; ties past any list; few finite; scores that overflow."""
    case = random_case(7, 20_011, batch=6, dtype=torch.float32)
    noise = torch.randn(case.logits.shape, generator=torch.Generator().manual_seed(2))
    if row == "flat":
        case.logits = noise
    elif row == "ties":
        case.logits = (noise * 2).round() / 4
    elif row == "peak":
        case.logits[:, 17] = 60.0
    elif row == "few":
        case.logits[:, 90:] = -torch.inf
    else:
        case.logits = noise * 1e38
    defaults = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    for temperature in (0.01, 0.7):
        case.options = [
            {**defaults, **options, "temperature": temperature, "seed": seed} for seed in range(6)
        ]
        assert_all_clusters_agree(case, rule, (1, 2, 8))


@pytest.mark.parametrize("rule", RULES)
def test_rows_at_any_address(rule: str) -> None:
    """The copy engine takes rows at multiples of 16 bytes only."""
    case = random_case(3, 4500, batch=4, dtype=torch.bfloat16)
    tree, logits, *rest = case.arguments("cuda")
    draft = case.draws("cuda") if rule == "rejection" else None
    expected = run((tree, logits, *rest), draft, None, 4)  # type: ignore[arg-type]
    wide = torch.full((logits.shape[0], 4700), torch.nan, dtype=torch.bfloat16, device="cuda")
    for start in (1, 7, 8, 100):
        view = wide[:, start : start + 4500]
        view.copy_(logits)
        assert_same(run((tree, view, *rest), draft, None, 4), expected)  # type: ignore[arg-type]
        view.fill_(torch.nan)


def test_more_draws_than_are_kept_at_hand() -> None:
    """A hundred draws at the root; the target likes the last, which the draft does not."""
    case = random_case(5, 3000, batch=4)
    names = tuple(range(100))
    nodes = [(list(names), [0] * 100) for _ in case.trees]
    case.trees = [([0, *tokens], [-1, *parents]) for tokens, parents in nodes]
    weights = (1000,) * 80 + (1,) * 20
    case.expansions = [[Expansion(0, tuple(range(1, 101)), names, weights)] for _ in nodes]
    case.replacement = [False, True, False, True]
    generator = torch.Generator().manual_seed(6)
    case.logits = torch.randn(4 * 101, 3000, generator=generator)
    case.logits[:, 80:100] += 7.0
    defaults = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
    for seed in range(5):
        case.options = [{**defaults, "seed": 10 * seed + b} for b in range(4)]
        assert_all_clusters_agree(case, "rejection")


def test_what_cancels_in_the_residual() -> None:
    for seed in range(8):
        case = case_that_cancels(seed, vocab=1500, batch=24)
        assert_all_clusters_agree(case, "rejection", (1, 4))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("batch", [1, 9, 40, 300])
def test_a_real_vocabulary(batch: int, rule: str) -> None:
    """As many clusters as the device runs at once, and more; each request as if it were alone."""
    case = random_case(batch, 128_256, batch=min(batch, 9), dtype=torch.bfloat16)
    times = -(-batch // len(case.trees))
    many = Case(
        case.trees * times,
        case.logits.repeat(times, 1),
        case.options * times,
        case.positions * times,
        case.expansions * times,
        case.replacement * times,
    )
    draft = {d: c.draws("cuda") for d, c in (("one", case), ("many", many))}
    is_match = rule == "match"
    expected = run(case.arguments("cuda"), None if is_match else draft["one"], None, 0)
    result = run(many.arguments("cuda"), None if is_match else draft["many"], None, 0)
    for name, one in vars(expected).items():
        whole = getattr(result, name)
        assert torch.equal(whole, one.repeat(times, *[1] * (one.dim() - 1))), name
    if batch <= 9:
        assert_all_clusters_agree(case, rule, (2, 16))


@pytest.mark.parametrize("rule", RULES)
def test_a_graph_with_changing_trees(rule: str) -> None:
    """One capture; then other trees, counts, logits and sampling in the same memory."""
    capacity, vocab = 80, 5000
    cases = [random_case(seed, vocab, batch=5, dtype=torch.bfloat16) for seed in range(4)]
    widest = max(case.draws("cpu").token_ids.shape[1] for case in cases)
    draws = [pad(case.draws("cuda"), capacity, widest) for case in cases]
    arguments = [case.arguments("cuda") for case in cases]
    sizes = [a[0].num_nodes for a in arguments]
    static_tokens, static_parents = (
        torch.full((capacity,), -1, dtype=torch.int32, device="cuda") for _ in range(2)
    )
    static_logits = torch.full((capacity, vocab), torch.nan, dtype=torch.bfloat16, device="cuda")
    tree, _, sampling, positions = arguments[0]
    static = DraftTree(static_tokens, static_parents, tree.indptr.clone(), 12, 12)
    static_sampling = SamplingParams(*(x.clone() for x in vars(sampling).values()))
    static_positions, static_draws = positions.clone(), draws[0]
    static_draws = replace(
        draws[0], **{k: v.clone() for k, v in vars(draws[0]).items() if k != "max_rows"}
    )

    def load(i: int) -> None:
        tree, logits, sampling, positions = arguments[i]
        static_tokens[: sizes[i]] = tree.token_ids
        static_parents[: sizes[i]] = tree.parents
        static.indptr.copy_(tree.indptr)
        static_logits[: sizes[i]] = logits
        for name, value in vars(sampling).items():
            getattr(static_sampling, name).copy_(value)
        static_positions.copy_(positions)
        for name, value in vars(draws[i]).items():
            if name != "max_rows":
                getattr(static_draws, name).copy_(value)

    def call() -> VerifyResult:
        draft = static_draws if rule == "rejection" else None
        return run((static, static_logits, static_sampling, static_positions), draft, None, 0)

    load(0)
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    for i in (1, 0, 2, 3, 2):
        load(i)
        graph.replay()
        draft = cases[i].draws("cuda") if rule == "rejection" else None
        expected = run(arguments[i], draft, None, 2)
        for name in ("status", "num_accepted"):
            assert torch.equal(getattr(result, name), getattr(expected, name))
        depth = arguments[i][0].max_depth
        assert torch.equal(result.token_ids[:, : depth + 1], expected.token_ids)


def pad(draws: Draws, capacity: int, support: int) -> Draws:
    """The same draws in tensors that any of the cases fits into."""

    def padded(tensor: Tensor, rows: int, value: int) -> Tensor:
        shape = (rows, support) if tensor.dim() == 2 else (rows,)
        out = torch.full(shape, value, dtype=tensor.dtype, device=tensor.device)
        out[tuple(slice(n) for n in tensor.shape)] = tensor
        return out

    last = int(draws.indptr[-1])
    return Draws(
        padded(draws.indptr, capacity + 1, last),
        padded(draws.children, 400, 0),
        padded(draws.rows, 400, 0),
        padded(draws.token_ids, 400, -1),
        padded(draws.weights, 400, 0),
        padded(draws.replacement, 400, 0),
        4,
    )


def test_rows_that_no_cluster_holds() -> None:
    tree = DraftTree.build([([0], [-1])], "cuda")
    logits = torch.zeros(1, 400_000, device="cuda")
    arguments = (
        tree,
        logits,
        SamplingParams.build(1, device="cuda"),
        torch.ones_like(tree.indptr[:1]).long(),
    )
    with pytest.raises(RuntimeError, match="expected rows of at most 1048576 bytes, got 1600000"):
        verify_tree(*arguments, backend="cuda")
    assert verify_tree(*arguments).token_ids.tolist() == [[0]]  # "auto" takes Triton
