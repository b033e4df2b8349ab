"""The CUDA kernels: every head size, page size and group, trees of all sizes, graphs."""

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.attention.examples import attention, example
from tests.paged_trees import Paged, to_device
from tests.verify.cases import HAS_CUDA_KERNELS
from wanspec_kernels.attention import tree_attention
from wanspec_kernels.attention.arguments import Scoring
from wanspec_kernels.attention.cuda import cuda_lacks
from wanspec_kernels.tree import DraftTree

MAX_ERROR = {torch.bfloat16: 5e-3, torch.float16: 1e-3}


@pytest.fixture
def poisoned() -> Iterator[None]:
    """What torch allocates begins as NaN: outputs, and the kernels' workspace."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def assert_right(query: Tensor, paged: Paged, tree: DraftTree) -> None:
    """Against the oracle, and the same bits again. Behind the last slot the page table leads
    nowhere."""
    expected = attention(query, paged, tree, "reference").double()
    table = paged.page_table.clone()
    unused = table < 0
    nowhere = torch.tensor([-1, -(1 << 31), (1 << 31) - 1, len(paged.k_pages)]).int()
    table[unused] = nowhere[torch.arange(int(unused.sum())) % 4]
    paged = Paged(paged.k_pages, paged.v_pages, table, paged.context_lens)
    actual = attention(query, paged, tree, "cuda", "cuda")
    rows = int(tree.indptr[-1])
    difference = torch.linalg.norm((actual.double() - expected)[:rows])
    assert difference <= MAX_ERROR[query.dtype] * torch.linalg.norm(expected[:rows])
    assert torch.equal(attention(query, paged, tree, "cuda", "cuda")[:rows], actual[:rows])


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA_KERNELS, reason="needs the CUDA extension on Hopper")
class TestKernels:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("page_size", [16, 32, 64, 128, 256])
    @pytest.mark.parametrize("dim", [64, 128, 256])
    def test_sizes(self, dim: int, page_size: int, dtype: torch.dtype, poisoned: None) -> None:
        host = random.Random(dim + page_size)
        sizes = [host.randrange(1, 65) for _ in range(5)]
        lens = [0, *(host.randrange(0, 2500) for _ in range(4))]
        assert_right(*example(lens, sizes, page_size=page_size, group=4, dim=dim, dtype=dtype))

    @pytest.mark.parametrize("group", [1, 2, 3, 5, 7, 8, 11, 16])
    def test_groups(self, group: int, poisoned: None) -> None:
        lens, sizes = [1, 130, 2047, 900], [64, 99, 5, 33]
        assert_right(*example(lens, sizes, group=group, dim=128, dtype=torch.bfloat16))

    @pytest.mark.parametrize("kind", ["chain", "star", "random"])
    def test_large_trees(self, kind: str, poisoned: None) -> None:
        lens, sizes = [777, 128, 3000, 1], [1024, 700, 65, 1]
        query, paged, tree = example(lens, sizes, group=4, dim=128, dtype=torch.bfloat16)
        if kind != "random":
            parents = {"chain": lambda n: range(-1, n - 1), "star": lambda n: [-1] + [0] * (n - 1)}
            trees = [([1] * n, list(parents[kind](n))) for n in sizes]
            tree = DraftTree.build(trees)
        assert_right(query, paged, tree)

    def test_ragged_batch(self, poisoned: None) -> None:
        host = random.Random(4)
        sizes = [host.randrange(1, 65) for _ in range(70)]
        lens = [int(100 * 60 ** host.random()) for _ in sizes]
        assert_right(*example(lens, sizes, group=4, dim=128, dtype=torch.bfloat16))

    def test_requests_without_rows_and_padding(self, poisoned: None) -> None:
        query, paged, tree = example([18, 40], [5, 9], group=4, dim=64, dtype=torch.float16)
        expected = attention(query, paged, tree, "reference")
        indptr = torch.tensor([0, 5, 5, 14], dtype=torch.int32)
        filler = torch.full((6,), -1, dtype=torch.int32)
        trees = DraftTree(
            torch.cat([tree.token_ids, filler]), torch.cat([tree.parents, filler]), indptr, 150, 150
        )
        wide = torch.cat([query, torch.full((6, *query.shape[1:]), torch.nan).half()])
        lens = torch.tensor([18, 7, 40], dtype=torch.int32)
        three = Paged(paged.k_pages, paged.v_pages, paged.page_table[[0, 0, 1]], lens)
        actual = attention(wide, three, trees, "cuda", "cuda")
        torch.testing.assert_close(actual[:14], expected, rtol=2e-3, atol=2e-3)
        assert actual[14:].isnan().all(), "written past the last tree"

    def test_views(self, poisoned: None) -> None:
        """Heads first within a page, keys and values side by side, a query out of a wider one."""
        query, paged, tree = example([100, 40], [20, 9], group=4, dim=128, dtype=torch.bfloat16)
        expected = attention(query, paged, tree, "reference")
        both = torch.stack([paged.k_pages, paged.v_pages]).transpose(2, 3).contiguous()
        both = both.cuda().transpose(2, 3)
        wide = torch.full((29, 3, 8, 128), torch.nan, dtype=torch.bfloat16, device="cuda")
        wide[:, 1] = query.cuda()
        actual = tree_attention(
            wide[:, 1],
            both[0],
            both[1],
            paged.page_table.cuda(),
            paged.context_lens.cuda(),
            to_device(tree, "cuda"),
            backend="cuda",
        )
        torch.testing.assert_close(actual.cpu(), expected, rtol=1.6e-2, atol=1.6e-2)

    def test_a_graph_with_changing_trees(self) -> None:
        """Other trees, lengths, contexts and pages in the same memory."""
        capacity, options = 128, {"group": 4, "dim": 128, "dtype": torch.bfloat16}
        cases = [
            example(lens, sizes, seed=seed, **options)  # type: ignore[arg-type]
            for seed, (lens, sizes) in enumerate(
                [([2000] * 3, [40] * 3), ([1900, 0, 5], [64, 1, 30]), ([1, 800, 90], [9, 1, 64])]
            )
        ]
        most = max(len(paged.k_pages) for _, paged, _ in cases)
        pages = torch.full((2, most, 16, 2, 128), torch.nan, dtype=torch.bfloat16, device="cuda")
        columns = max(paged.page_table.shape[1] for _, paged, _ in cases)
        table = torch.zeros(3, columns, dtype=torch.int32, device="cuda")
        query = torch.zeros(capacity, 8, 128, dtype=torch.bfloat16, device="cuda")
        lens, tokens, parents = (
            torch.full((n,), -1, dtype=torch.int32, device="cuda") for n in (3, capacity, capacity)
        )
        indptr = torch.zeros(4, dtype=torch.int32, device="cuda")
        static = DraftTree(tokens, parents, indptr, 64, 64)
        bits = static.ancestor_bits

        def load(i: int) -> None:
            q, paged, tree = cases[i]
            query[: len(q)] = q.cuda()
            pages[0, : len(paged.k_pages)] = paged.k_pages.cuda()
            pages[1, : len(paged.v_pages)] = paged.v_pages.cuda()
            table.fill_(-1)[:, : paged.page_table.shape[1]] = paged.page_table.cuda()
            lens.copy_(paged.context_lens)
            indptr.copy_(tree.indptr)
            wide = DraftTree(tree.token_ids, tree.parents, tree.indptr, 64, 64)
            bits[: len(q)] = wide.ancestor_bits.cuda()

        def call() -> Tensor:
            return tree_attention(query, *pages, table, lens, static, backend="cuda")

        load(0)
        call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call()
        for i in (0, 1, 2, 1):
            load(i)
            graph.replay()
            expected = attention(*cases[i], "reference")
            torch.testing.assert_close(out[: len(expected)].cpu(), expected, rtol=2e-2, atol=2e-2)

    @pytest.mark.parametrize(
        ("options", "scoring", "message"),
        [
            (
                {"dtype": torch.float32},
                Scoring(1.0),
                "a query of bfloat16 or float16, got torch.float32",
            ),
            ({"dim": 96}, Scoring(1.0), "a dim of 64, 128 or 256, got 96"),
            ({"page_size": 512}, Scoring(1.0), "a page_size of 256 at most, got 512"),
            ({"group": 17}, Scoring(1.0), "at most 16 heads a kv_head, got 17"),
            ({}, Scoring(1.0, window=4), "expected no window"),
            ({}, Scoring(-1.0), "a positive scale"),
        ],
    )
    def test_what_the_kernels_lack(
        self, options: dict[str, int], scoring: Scoring, message: str
    ) -> None:
        shape = {"dim": 64, "dtype": torch.bfloat16, **options}
        query, paged, _ = example([10], [3], **shape)  # type: ignore[arg-type]
        lack = cuda_lacks(query.cuda(), paged.k_pages.cuda(), paged.v_pages.cuda(), scoring)
        assert lack is not None
        assert message in lack


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA_KERNELS, reason="needs the CUDA extension on Hopper")
def test_auto_takes_them_where_they_serve() -> None:
    query, paged, tree = example([500, 40], [30, 9], group=4, dim=128, dtype=torch.bfloat16)
    auto, by_name = (attention(query, paged, tree, b, "cuda") for b in ("auto", "cuda"))
    assert torch.equal(auto, by_name)
    few, paged_few, chain = example([500], [4], group=4, dim=128, dtype=torch.bfloat16)
    auto = attention(few, paged_few, chain, "auto", "cuda")
    assert torch.equal(auto, attention(few, paged_few, chain, "triton", "cuda"))
    windowed = attention(query, paged, tree, "auto", "cuda", window=8)
    assert torch.equal(windowed, attention(query, paged, tree, "triton", "cuda", window=8))


def test_on_a_cpu_they_say_so() -> None:
    query, paged, tree = example([10], [3])
    with pytest.raises(RuntimeError, match="backend cuda: expected tensors on cuda, got cpu"):
        attention(query, paged, tree, "cuda")
