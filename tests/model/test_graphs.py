"""A captured pass says what a launched one says, whatever was in its buffers before."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.model.architectures import (
    SUPPORTED,
    VOCAB,
    fill_contexts,
    make_pair,
    own_logits,
    paths_of,
)
from tests.paged_trees import random_trees, to_device
from tests.tiny_models import make_tiny_model
from tests.verify.cases import KERNELS
from wanspec_kernels.attention import launch
from wanspec_kernels.engine.model import Capacity, CaptureError, Target, TreeDecoder
from wanspec_kernels.engine.model.capacity import PassBuffers, ladder, smallest_that_holds
from wanspec_kernels.engine.model.compiled import compiled_layers
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import DraftTree, HostTree

SMALL, WIDE = Capacity(1, 16, 16), Capacity(4, 40, 35)
# Sizes of the trees and lengths of the contexts of one pass after another.
PASSES = (
    ([1, 14, 6], [3, 40, 0]),
    ([5, 35], [20, 1]),
    ([9], [33]),
    ([2, 3, 4, 5], [7, 50, 17, 15]),
    ([16], [64]),
    ([1], [1]),
)


def choose_experts(target: Target) -> None:
    """In float32 transformers' default reads on the host which experts have rows."""
    if hasattr(target.model.config, "num_local_experts"):
        target.model.set_experts_implementation("batched_mm")


def poison(target: Target) -> None:
    """Slots that nobody has written hold NaN."""
    target.cache.k_pages.fill_(torch.nan)
    target.cache.v_pages.fill_(torch.nan)


def batches(
    target: Target, seed: int
) -> Iterator[tuple[tuple[DraftTree, Tensor, Tensor], list[list[int]]]]:
    """What `Target.logits` takes, and the text of each node, for PASSES; pages change hands."""
    rng = random.Random(seed)
    for sizes, lens in PASSES:
        poison(target)
        tree = random_trees(sizes, rng, VOCAB)
        texts = [[rng.randrange(VOCAB) for _ in range(n)] for n in lens]
        target.cache.reserve(99, rng.randrange(1, 100))  # so that the next ones get other pages
        slots = fill_contexts(target, texts, tree, chunk=16)
        target.cache.free(99)
        yield (to_device(tree, str(target.device)), *slots), paths_of(texts, tree)
        for request in range(len(texts)):
            target.cache.free(request)


def launched_padded(
    target: Target, buffers: PassBuffers, tree: DraftTree, lens: Tensor, table: Tensor
) -> Tensor:
    with torch.inference_mode():
        buffers.load(tree, lens, table)
        padded = target.logits(buffers.tree(), buffers.context_lens, buffers.page_table)
    return padded[: tree.num_nodes]


@pytest.mark.parametrize("name", ["llama", "mistral, sliding", "gpt_oss, sinks"])
def test_padding_changes_nothing(name: str, device: str) -> None:
    """In the buffers, as a graph reads them, but launched from Python."""
    plain, target = make_pair(*SUPPORTED[name], device)
    choose_experts(target)
    with torch.inference_mode():
        buffers = PassBuffers(WIDE, 13, target.device)
    for batch, paths in batches(target, 5):
        written = target.cache.k_pages.clone()
        logits = launched_padded(target, buffers, *batch)
        expected = own_logits(plain, paths, device)
        scale = expected.abs().max().item()
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * scale)
        slots = target.cache.k_pages.isnan().all(-1).all(-1)
        new = written.isnan().all(-1).all(-1) & ~slots
        assert int(new[0].sum()) == batch[0].num_nodes, "wrote other slots than the trees'"


def test_buffers_hold_the_batch_and_padding() -> None:
    buffers = PassBuffers(Capacity(3, 10, 5), 4, torch.device("cpu"))
    table = torch.tensor([[3, 1], [2, -1]], dtype=torch.int32)
    for _ in range(2):
        tree = DraftTree.build([([7, 8, 9], [-1, 0, 0]), ([5, 6, 7, 8], [-1, 0, 1, 0])])
        buffers.load(tree, torch.tensor([20, 4], dtype=torch.int32), table)
        assert buffers.token_ids.tolist() == [7, 8, 9, 5, 6, 7, 8, -1, -1, -1]
        assert buffers.parents.tolist() == [-1, 0, 0, -1, 0, 1, 0, -1, -1, -1]
        assert buffers.indptr.tolist() == [0, 3, 7, 7]
        assert buffers.context_lens.tolist() == [20, 4, 0]
        assert buffers.page_table.tolist()[:2] == [[3, 1, -1, -1], [2, -1, -1, -1]]
        assert buffers.tree().depth.tolist() == [0, 1, 1, 0, 1, 2, 1, -1, -1, -1]
        full = DraftTree.chains([[1] * 5, [2] * 2, [3] * 3])
        lens = torch.tensor([1, 2, 3], dtype=torch.int32)
        buffers.load(full, lens, torch.full((3, 4), 9, dtype=torch.int32))
        assert buffers.indptr.tolist() == [0, 5, 7, 10]
        assert buffers.token_ids.tolist() == full.token_ids.tolist()
        buffers.page_table.fill_(-1)


def test_padding_of_the_callers_own_stays_padding() -> None:
    buffers = PassBuffers(Capacity(2, 8, 8), 1, torch.device("cpu"))
    tokens, parents = torch.tensor([[4, 5, -1, -1], [-1, 0, -1, -1]], dtype=torch.int32)
    tree = DraftTree(tokens, parents, torch.tensor([0, 2], dtype=torch.int32), 4, 3)
    buffers.load(tree, torch.ones(1, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32))
    assert buffers.indptr.tolist() == [0, 2, 2]
    assert buffers.tree().depth.tolist() == [0, 1] + [-1] * 6


def test_the_smallest_capacity_that_holds() -> None:
    capacities = [Capacity(8, 64, 16), Capacity(1, 64, 64), Capacity(1, 8, 8), Capacity(64, 64, 1)]
    for sizes, expected in (
        ([1], Capacity(1, 8, 8)),
        ([8], Capacity(1, 8, 8)),
        ([9], Capacity(1, 64, 64)),
        ([2, 16], Capacity(8, 64, 16)),
        ([1] * 9, Capacity(64, 64, 1)),
        ([2, 17], None),
        ([65], None),
        ([8] * 9, None),
    ):
        tree = random_trees(sizes, random.Random(0))
        assert smallest_that_holds(capacities, tree) == expected


def test_a_ladder_holds_every_batch_in_the_step_of_its_rows() -> None:
    capacities = ladder((1, 4, 16, 64, 256), max_batch=8, max_rows=100, max_nodes=24)
    assert [c.num_nodes for c in capacities] == [1, 4, 16, 64, 100]
    rng = random.Random(0)
    for _ in range(200):
        sizes = [rng.choice((1, 3, rng.randint(1, 24))) for _ in range(rng.randint(1, 8))]
        rows, found = sum(sizes), smallest_that_holds(capacities, random_trees(sizes, rng))
        if rows > 100:
            assert found is None
        else:
            assert found is not None
            assert found.num_nodes == min(c.num_nodes for c in capacities if c.num_nodes >= rows)
    for sizes in ([1] * 9, [25]):
        assert smallest_that_holds(capacities, random_trees(sizes, rng)) is None


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 0), (1, 4, 5), (1, 2000, 1025)])
def test_a_capacity_that_cannot_be(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="Capacity: expected a batch from 1 on"):
        Capacity(*numbers)


def test_layers_are_compiled_within_only(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what they say is what they said."""
    plain, target = make_pair("Llama", {}, device)
    seen = []

    def compile_nothing(forward: object, **_: object) -> object:
        seen.append(forward)
        return forward

    monkeypatch.setattr(torch, "compile", compile_nothing)
    batch, paths = next(batches(target, 9))
    with compiled_layers(target.model):
        assert len(seen) == 2
        logits = target.logits(*batch)
    assert not any("forward" in vars(module) for module in target.model.modules())
    torch.testing.assert_close(logits, own_logits(plain, paths, device), rtol=1e-4, atol=1e-4)


def test_a_cpu_captures_nothing(tmp_path: Path) -> None:
    target = Target.load(str(make_tiny_model(tmp_path, seed=0)), num_pages=2)
    with pytest.raises(RuntimeError, match="capture: expected a model on cuda, got cpu"):
        target.capture([SMALL])


@pytest.fixture
def attention_poisons_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton's attention does not write is NaN, in every replay."""

    def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full(shape, torch.nan, dtype=dtype, device=device)

    monkeypatch.setattr(launch, "_allocate", allocate)


@pytest.mark.gpu
@pytest.mark.usefixtures("attention_poisons_padding")
class TestGraphs:
    @pytest.mark.parametrize("name", SUPPORTED)
    def test_logits_are_the_models_own(self, name: str, device: str) -> None:
        """With other trees, numbers of trees, contexts and pages in every replay."""
        plain, target = make_pair(*SUPPORTED[name], device)
        choose_experts(target)
        poison(target)
        target.capture([SMALL, WIDE])
        assert target.cache.k_pages.isnan().all(), "a capture wrote to the pages"
        twin = Target(target.model, num_pages=40, max_length=200)  # of the same weights, launched
        twin.cache = target.cache
        with torch.inference_mode():
            buffers = {c: PassBuffers(c, 13, target.device) for c in (SMALL, WIDE)}
        for batch, paths in batches(target, 3):
            logits = target.logits(*batch).clone()
            expected = own_logits(plain, paths, device)
            scale = expected.abs().max().item()
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * scale)
            capacity = smallest_that_holds((SMALL, WIDE), batch[0])
            assert capacity is not None
            launched = launched_padded(twin, buffers[capacity], *batch)
            torch.testing.assert_close(logits, launched, rtol=0, atol=1e-6 * scale)
            torch.testing.assert_close(target.logits(*batch), logits, rtol=0, atol=0)
            rows = torch.randint(batch[0].num_nodes, (3,), dtype=torch.int32, device=device)
            some = target.logits(*batch, rows=rows)
            torch.testing.assert_close(some, logits[rows], rtol=0, atol=0)

    @pytest.mark.parametrize("backend", KERNELS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision(self, dtype: torch.dtype, backend: str, device: str) -> None:
        plain, target = make_pair("Llama", {"head_dim": 64}, device, dtype, backend)
        target.capture([SMALL, WIDE])
        for batch, paths in batches(target, 4):
            logits, expected = target.logits(*batch), own_logits(plain, paths, device)
            errors = (logits - expected).float().norm(dim=1) / expected.float().norm(dim=1)
            assert errors.max() < (0.03 if dtype == torch.bfloat16 else 0.004)

    @pytest.mark.filterwarnings("default")  # those of torch.compile are not ours
    @pytest.mark.parametrize(
        ("name", "dtype"),
        [
            ("qwen3, normalised", torch.float32),
            ("gemma2, soft-capped", torch.float32),
            ("llama", torch.bfloat16),
        ],
    )
    def test_compiled_layers(self, name: str, dtype: torch.dtype, device: str) -> None:
        plain, target = make_pair(*SUPPORTED[name], device, dtype)
        target.capture([SMALL, WIDE, Capacity(1, 1, 1)], compiled=True)
        assert not any("forward" in vars(module) for module in target.model.modules())
        for batch, paths in batches(target, 8):
            logits, expected = target.logits(*batch), own_logits(plain, paths, device)
            errors = (logits - expected).float().norm(dim=1) / expected.float().norm(dim=1)
            assert errors.max() < (0.03 if dtype == torch.bfloat16 else 1e-5)

    @pytest.mark.filterwarnings("ignore:Synchronization debug mode")
    def test_a_pass_waits_for_nothing(self, device: str) -> None:
        _, target = make_pair("Llama", {}, device)
        target.capture([SMALL])
        for batch, _ in batches(target, 6):
            if not SMALL.holds(batch[0]):
                continue
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                target.logits(*batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    def test_a_model_that_waits_for_the_device(self, device: str) -> None:
        _, target = make_pair(*SUPPORTED["mixtral"], device)
        target.model.set_experts_implementation("eager")
        with pytest.raises(
            CaptureError, match=r"Capacity\(batch=1, num_nodes=16, max_nodes=16\): "
        ):
            target.capture([SMALL])
        batch, _ = next(batches(target, 2))
        assert not target.logits(*batch).isnan().any()

    def test_what_no_graph_holds_is_launched(self, device: str) -> None:
        plain, target = make_pair("Llama", {}, device)
        target.capture([Capacity(1, 4, 4)])
        for batch, paths in batches(target, 7):
            expected = own_logits(plain, paths, device)
            scale = expected.abs().max().item()
            torch.testing.assert_close(target.logits(*batch), expected, rtol=0, atol=1e-5 * scale)

    def test_a_decoder_writes_the_same_text(self, device: str, tmp_path: Path) -> None:
        make_tiny_model(tmp_path, seed=4)
        texts = []
        for capacities in ([], [Capacity(1, n, n) for n in (4, 32)]):
            target = Target.load(str(tmp_path), device=device, dtype=torch.float32, num_pages=40)
            target.capture(capacities)
            decoder, text, rng = TreeDecoder(target), [5, 17, 201], random.Random(2)
            decoder.start(0, text, SamplingParams.build(1, temperature=0.8, seed=3))
            while len(text) < 30:
                size = rng.choice((3, 20, 33))
                tree = random_trees([size], rng, 260)
                tokens = (text[-1], *tree.token_ids.tolist()[1:])
                text += decoder.verify(0, HostTree(tokens, tuple(tree.parents.tolist())))[0]
            texts.append(text)
        shared = min(map(len, texts))
        assert texts[0][:shared] == texts[1][:shared]

    def test_too_many(self, device: str) -> None:
        _, target = make_pair("Llama", {}, device)
        with pytest.raises(ValueError, match="expected at most 32, got 33"):
            target.capture(Capacity(1, n, n) for n in range(1, 34))
