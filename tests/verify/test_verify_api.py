"""The public function: its errors, its backends, its operators; and what `Draws.build` refuses."""

import logging
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.verify.cases import KERNELS, assert_same, random_case
from wanspec_kernels import backend
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import DraftTree, Expansion
from wanspec_kernels.verify import Draws, operators, verify_tree
from wanspec_kernels.verify.api import RULES


def arguments(device: str) -> dict[str, Any]:
    case = random_case(3, 40, batch=3)
    names = ("tree", "target_logits", "sampling", "positions")
    return dict(zip(names, case.arguments(device), strict=True)) | {
        "rule": "rejection",
        "draft": case.draws(device),
    }


def test_errors_say_what_was_expected(device: str) -> None:
    good = arguments(device)
    logits, sampling, draft = good["target_logits"], good["sampling"], good["draft"]
    n = good["tree"].num_nodes
    on = f"on {logits.device}"
    wrong: list[tuple[dict[str, Any], str]] = [
        (
            {"target_logits": logits[:-2]},
            f"target_logits: expected [{n}, 40] {on}, got [{n - 2}, 40] {on}",
        ),
        ({"target_logits": logits.to("meta")}, "on meta"),
        ({"target_logits": logits[0]}, f"target_logits: expected [{n}, vocab] {on}, got [40] {on}"),
        (
            {"target_logits": logits.double()},
            "expected bfloat16, float16 or float32, got torch.float64",
        ),
        (
            {"target_logits": logits.T.contiguous().T},
            f"target_logits: expected a last dimension of stride 1, got {n}",
        ),
        ({"positions": good["positions"].int()}, "positions: expected [3] torch.int64"),
        ({"positions": good["positions"][:1]}, "positions: expected [3] torch.int64"),
        ({"sampling": replace(sampling, seed=sampling.seed.int())}, "sampling.seed: expected [3]"),
        ({"sampling": replace(sampling, top_k=sampling.top_k.long())}, "sampling.top_k: expected"),
        (
            {"draft": None},
            "draft: expected Draws with every rule but 'match', got None with 'rejection'",
        ),
        ({"draft": None, "rule": "traversal"}, "got None with 'traversal'"),
        ({"rule": "match"}, "got Draws with 'match'"),
        (
            {"rule": "blocks"},
            "rule: expected one of 'match', 'rejection', 'block', 'traversal', got 'blocks'",
        ),
        ({"backend": "fast"}, "expected a backend of auto, cuda, triton, reference, got fast"),
        ({"draft": replace(draft, indptr=draft.indptr[1:])}, f"draft.indptr: expected [{n + 1}]"),
        ({"draft": replace(draft, weights=draft.weights.T)}, "draft.weights: expected"),
        (
            {"draft": replace(draft, replacement=draft.replacement.int())},
            "draft.replacement: expected",
        ),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=re.escape(message)):
            verify_tree(**good | change)


def test_triton_on_cpu_tensors_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="verify_tree: backend triton: expected tensors on cuda"):
        verify_tree(**arguments("cpu"), backend="triton")


def test_cuda_kernels_say_what_they_lack() -> None:
    with pytest.raises(RuntimeError, match="verify_tree: backend cuda: expected tensors on cuda"):
        verify_tree(**arguments("cpu"), backend="cuda")


def test_without_triton() -> None:
    """A drafter's machine has none: imports and the reference work, and asking for it says so."""
    script = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "triton" else find_spec(name, *a)
import torch
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import DraftTree
from wanspec_kernels.verify import verify_tree
arguments = (
    DraftTree.chains([[1, 2]]), torch.eye(2, 3), SamplingParams.build(1), torch.tensor([1])
)
assert verify_tree(*arguments).token_ids.tolist() == [[0, -1]]
try:
    verify_tree(*arguments, backend="triton")
except RuntimeError as error:
    assert "the package triton is not installed" in str(error)
else:
    raise AssertionError
assert not any(name.split(".")[0] == "triton" for name in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_auto_says_its_choice_once(device: str, caplog: pytest.LogCaptureFixture) -> None:
    backend._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="wanspec_kernels"):
        verify_tree(**arguments(device))
        verify_tree(**arguments(device))
    chosen = KERNELS[-1] if device == "cuda" else "reference"
    assert [record.message for record in caplog.records] == [
        f"verify_tree on {device}: backend {chosen}"
    ]


@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_operators(
    rule: str,
    device: str,
    guarded_outputs: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Schema, fake and autograd registration, with static and symbolic shapes."""
    monkeypatch.setattr(operators, "_allocate", guarded_outputs)
    case = random_case(8, 20, batch=2, max_nodes=5)
    tree, logits, sampling, positions = case.arguments(device)
    rows = (
        sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed
    )  # fmt: skip
    tail = (positions, *rows, tree.max_depth, "reference" if device == "cpu" else KERNELS[-1])
    if rule == "match":
        inputs = (logits, None, tree.token_ids, tree.parents, tree.indptr, *tail)
    else:
        d = case.draws(device)
        tables = (d.indptr, d.children, d.rows, d.token_ids, d.weights, d.replacement)
        inputs = (logits, None, tree.token_ids, tree.indptr, *tables, d.max_rows, *tail)
    torch.library.opcheck(getattr(torch.ops.wanspec, f"verify_{rule}").default, inputs)


@pytest.mark.parametrize("rule", RULES)
def test_compiled_whole(
    rule: str,
    device: str,
    guarded_outputs: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch.compile(fullgraph=True) around the public call, with the backend it chooses."""
    monkeypatch.setattr(operators, "_allocate", guarded_outputs)
    good = arguments(device) | {"rule": rule}
    if rule == "match":
        good["draft"] = None
    elif rule == "block":  # one draw a node
        good["tree"] = DraftTree.chains([[1, 2, 3], [4], [5, 6]], device)
        good["target_logits"] = good["target_logits"][:6].clone()
        chain = [Expansion(i, (i + 1,), (i + 2,), (1,)) for i in range(2)]
        good["draft"] = Draws.build([chain, [], []], good["tree"], True)

    def verify(logits: torch.Tensor) -> torch.Tensor:
        return verify_tree(**good | {"target_logits": logits * 1.0}).token_ids + 1

    logits = good["target_logits"]
    compiled = torch.compile(verify, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits), verify(logits))


@pytest.mark.gpu
@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_captured_in_a_graph(rule: str) -> None:
    """One capture serves other logits of the same shapes."""
    good = arguments("cuda") | {"rule": rule}
    if rule == "match":
        good["draft"] = None
    verify_tree(**good)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = verify_tree(**good)
    for shift in (0, 7):
        good["target_logits"].copy_(good["target_logits"].roll(shift, dims=1))
        graph.replay()
        assert_same(result, verify_tree(**good, backend="reference"))


@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_rows_more_than_2_to_31_logits_away(rule: str, device: str) -> None:
    """Over memory of which next to nothing is touched."""
    stride = (1 << 30) + 8
    memory = torch.empty(2 * stride + 40, dtype=torch.bfloat16, device=device)
    logits = memory.as_strided((3, 40), (stride, 1))
    logits.zero_()
    logits[[0, 1, 2], [17, 18, 19]] = 50
    tree = DraftTree.build([([0, 17, 18], [-1, 0, 1])], device)
    draft = None
    if rule == "rejection":
        chain = [Expansion(i, (i + 1,), (17 + i,), (1,)) for i in range(2)]
        draft = Draws.build([chain], tree, True)
    sampling = SamplingParams.build(1, temperature=1.0, device=device)
    result = verify_tree(
        tree,
        logits,
        sampling,
        torch.tensor([3], device=device),
        rule=rule,
        draft=draft,
        backend="triton",  # type: ignore[arg-type]
    )
    assert result.token_ids.tolist() == [[17, 18, 19]]


def test_more_entries_at_a_node_than_the_kernel_holds(device: str) -> None:
    """17 sources of 64 tokens each: the reference takes them, the kernel says it cannot."""
    tree = DraftTree.build([([0, 1], [-1, 0])], device)
    one = Expansion(0, (1,), tuple(range(64)), (1,) * 64)
    sampling = SamplingParams.build(1, device=device)
    arguments = (tree, torch.zeros(2, 70, device=device), sampling, torch.ones_like(sampling.seed))
    draft = Draws.build([[one] * 17], tree, True)
    result = verify_tree(*arguments, rule="rejection", draft=draft, backend="reference")
    assert result.token_ids.tolist() == [[0, -1]]
    with pytest.raises(RuntimeError, match="at most 1024 entries a node, got 17 rows of 64"):
        verify_tree(*arguments, rule="rejection", draft=draft, backend="triton")


@pytest.mark.gpu
def test_offsets_beyond_32_bits() -> None:
    """Only the last rows of 2**32 logits and more are on a path."""
    vocab = 128_256
    num_nodes = (1 << 32) // vocab + 8
    logits = torch.empty(num_nodes, vocab, dtype=torch.bfloat16, device="cuda")
    logits[-2:] = 0
    logits[-2, 17] = 50
    logits[-1, 18] = 50
    forest = [([0] * 1000, [-1] + [0] * 999)] * (num_nodes // 1000)
    forest += [([0] * (num_nodes % 1000 - 2), [-1] + [0] * (num_nodes % 1000 - 3))]
    tree = DraftTree.build([*forest, ([0, 17], [-1, 0])], "cuda")
    case = random_case(1, 40, batch=1)
    sampling = case.sampling("cuda")
    many = type(sampling)(
        *(column.expand(tree.batch).contiguous() for column in vars(sampling).values())
    )
    for rule in ("match", "rejection"):
        draft = None
        if rule == "rejection":
            last = [Expansion(0, (1,), (17,), (1,))]
            draft = Draws.build([*([[]] * len(forest)), last], tree, True)
        positions = torch.zeros(tree.batch, dtype=torch.int64, device="cuda")
        result = verify_tree(tree, logits, many, positions, rule=rule, draft=draft)  # type: ignore[arg-type]
        assert result.token_ids[-1, :2].tolist() == [17, 18]


TREE = ([5, 7, 8, 7], [-1, 0, 0, 1])


@pytest.mark.parametrize(
    ("expansion", "message"),
    [
        (Expansion(4, (), (7,), (1,)), "draws at node 4: expected a node in 0..3"),
        (Expansion(0, (3,), (7,), (1,)), "expected its children, got node 3"),
        (Expansion(0, (9,), (7,), (1,)), "expected its children, got node 9"),
        (Expansion(0, (1, 2), (7,), (1,)), r"tokens \[8\] are outside the distribution"),
        (Expansion(0, (1,), (7, 7), (1, 1)), "expected distinct token ids"),
        (Expansion(0, (1,), (7, -1), (1, 1)), "expected distinct token ids"),
        (Expansion(0, (1,), (7, 8), (1, 0)), "expected weights in 1..65535"),
        (Expansion(0, (1,), (7,), (65536,)), "expected weights in 1..65535"),
        (Expansion(0, (1,), (7, 8), (1,)), "got 2 tokens and 1 weights"),
        (Expansion(0, (1,), (), ()), "got 0 tokens and 0 weights"),
        (Expansion(0, (1, 1), (7, 8), (1, 1)), "without replacement, yet a token twice"),
    ],
)
def test_draws_that_do_not_fit_raise(expansion: Expansion, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Draws.build([[expansion]], DraftTree.build([TREE]), False)


def test_draws_are_laid_out_by_node_and_in_order(device: str) -> None:
    tree = DraftTree.build([([1], [-1]), TREE], device)
    expansions = [
        Expansion(1, (3,), (7,), (4,)),
        Expansion(0, (2, 2, 1), (8, 7), (1, 2)),
        Expansion(0, (), (9,), (1,)),  # no draws: no row
        Expansion(0, (1,), (7, 6, 4), (3, 2, 1)),
    ]
    draws = Draws.build([[], expansions], tree, [False, True])
    assert draws.indptr.tolist() == [0, 0, 4, 5, 5, 5]
    assert draws.children.tolist() == [2, 2, 1, 1, 3]
    assert draws.rows.tolist() == [0, 0, 0, 1, 2]
    assert draws.token_ids.tolist() == [[8, 7, -1], [7, 6, 4], [7, -1, -1]]
    assert draws.weights.tolist() == [[1, 2, 0], [3, 2, 1], [4, 0, 0]]
    assert draws.replacement.tolist() == [True] * 3
    assert draws.max_rows == 2
    empty = Draws.build([[], []], tree, True)
    assert empty.token_ids.shape == (0, 1)
    with pytest.raises(ValueError, match="expansions: expected 2 trees, got 1"):
        Draws.build([[]], tree, True)
