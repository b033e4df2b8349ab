"""Kernels and the CPU's path against the float64 oracle."""

import pytest
import torch

from tests.attention.examples import (
    INTERPRETED,
    assert_near,
    attention,
    example,
    launch_arguments,
)
from tests.paged_trees import Paged, to_device
from wanspec_kernels.attention import tree_attention
from wanspec_kernels.attention.arguments import Scoring
from wanspec_kernels.attention.launch import Launch, launch_tree_attention
from wanspec_kernels.tree import DraftTree

CASES = {
    "contexts around a page": {
        "context_lens": [0, 1, 15, 16, 17, 100],
        "sizes": [2, 1, 5, 3, 1, 2],
    },
    "more than one ancestor word": {"context_lens": [17, 0, 3], "sizes": [70, 65, 1], "group": 1},
    "long context": {
        "context_lens": [300, 7],
        "sizes": [3, 20],
        "group": 4,
        "kv_heads": 1,
        "dim": 64,
    },
    "large pages, odd dim": {
        "context_lens": [100, 300],
        "sizes": [6, 2],
        "page_size": 64,
        "dim": 80,
        "kv_heads": 1,
    },
    "one head": {"context_lens": [33], "sizes": [7], "group": 1, "kv_heads": 1, "dim": 32},
    "sixteen heads a group": {"context_lens": [20, 1], "sizes": [3, 5], "group": 16, "kv_heads": 1},
    "wide heads": {"context_lens": [40], "sizes": [4], "dim": 256, "kv_heads": 1, "page_size": 32},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["triton", "sdpa"])
def test_matches_the_oracle(name: str, backend: str, device: str) -> None:
    query, paged, tree = example(**CASES[name])
    expected = attention(query, paged, tree, "reference")
    assert_near(attention(query, paged, tree, backend, device), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_matches_the_oracle_in_half_precision(dtype: torch.dtype, device: str) -> None:
    query, paged, tree = example([0, 65, 130], [5, 33, 12], dim=64, dtype=dtype)
    expected = attention(query, paged, tree, "reference")
    assert_near(attention(query, paged, tree, "sdpa", device), expected)
    if dtype in INTERPRETED or device == "cuda":
        assert_near(attention(query, paged, tree, "triton", device), expected)
    else:
        with pytest.raises(RuntimeError, match="interpreter cannot multiply bfloat16"):
            attention(query, paged, tree, "triton", device)


@pytest.mark.parametrize("num_splits", [1, 2, 3, 7])
@pytest.mark.parametrize(("block_rows", "block_slots"), [(16, 16), (32, 64)])
def test_any_split_of_the_context(
    num_splits: int, block_rows: int, block_slots: int, device: str
) -> None:
    """Splits without a slot of a short context included."""
    query, paged, tree = example([130, 0, 16, 15], [9, 2, 1, 20])
    expected = attention(query, paged, tree, "reference")
    actual = launch_tree_attention(
        *launch_arguments(query, paged, tree, device),
        Scoring(query.shape[2] ** -0.5),
        Launch(block_rows, block_slots, num_splits, num_warps=4, num_stages=2),
    )
    assert_near(actual.cpu(), expected)


@pytest.mark.parametrize("backend", ["reference", "sdpa", "triton"])
def test_padding_bounds_and_strides(backend: str, device: str) -> None:
    """Rows past the last tree, host bounds larger than the batch, views for query and pages."""
    query, paged, tree = example([18, 40], [5, 9])
    expected = attention(query, paged, tree, "reference")
    filler = torch.full((6,), -1, dtype=torch.int32)
    padded = DraftTree(
        torch.cat([tree.token_ids, filler]),
        torch.cat([tree.parents, filler]),
        tree.indptr,
        max_nodes=150,
        max_depth=150,
    )
    nan = torch.full((6, *query.shape[1:]), torch.nan)
    wide = torch.cat([query, nan]).transpose(0, 1).contiguous().transpose(0, 1)
    # k as one half of [pages, page_size, 2, heads, dim], v as [heads, page_size, pages, dim]
    k_pages = torch.stack([paged.k_pages, paged.v_pages], dim=2)[:, :, 0]
    v_pages = paged.v_pages.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3)
    views = Paged(k_pages, v_pages, paged.page_table, paged.context_lens)
    assert_near(attention(wide, views, padded, backend, device)[:14], expected)


def test_heads_more_than_2_to_31_numbers_apart(device: str) -> None:
    """Over memory of which next to nothing is touched."""
    query, paged, tree = example([18], [5], kv_heads=1, dtype=torch.float16)
    far = (1 << 30) + 80
    memory = torch.empty(2 * far + 80, dtype=torch.float16, device=device)
    wide = memory.as_strided((5, 3, 16), (16, far, 1)).copy_(query)
    expected = attention(query, paged, tree, "reference")
    assert_near(attention(wide, paged, tree, "triton", device), expected)


@pytest.mark.parametrize("backend", ["reference", "sdpa", "triton"])
def test_a_request_without_rows(backend: str, device: str) -> None:
    query, paged, tree = example([18, 40], [5, 9])
    expected = attention(query, paged, tree, "reference")
    indptr = torch.tensor([0, 5, 5, 14], dtype=torch.int32)
    trees = DraftTree(tree.token_ids, tree.parents, indptr, tree.max_nodes, tree.max_depth)
    for context_len in (0, 7):
        lens = torch.tensor([18, context_len, 40], dtype=torch.int32)
        three = Paged(paged.k_pages, paged.v_pages, paged.page_table[[0, 0, 1]], lens)
        assert_near(attention(query, three, trees, backend, device), expected)


def test_batch_around_a_tree_does_not_matter(device: str) -> None:
    """With the same launch, to the last bit."""
    query, paged, tree = example([30, 50], [4, 4])
    together = attention(query, paged, tree, "triton", device)
    alone_tree = DraftTree.build([(tree.token_ids[4:].tolist(), tree.parents[4:].tolist())])
    alone = Paged(paged.k_pages, paged.v_pages, paged.page_table[1:], paged.context_lens[1:])
    torch.testing.assert_close(
        attention(query[4:], alone, alone_tree, "triton", device), together[4:], rtol=0, atol=0
    )


def test_scale(device: str) -> None:
    query, paged, tree = example([9], [3])
    k_pages, v_pages, *slots = paged.tensors(device)
    trees = to_device(tree, device)
    by_default = tree_attention(query.to(device) * 2, k_pages, v_pages, *slots, trees)
    scaled = tree_attention(query.to(device), k_pages, v_pages, *slots, trees, scale=0.5)
    assert_near(by_default, scaled)


def test_empty_batch(device: str) -> None:
    tree = DraftTree.build([], device)
    pages = torch.zeros(1, 16, 1, 16, device=device)
    table = torch.zeros(0, 1, dtype=torch.int32, device=device)
    lens = torch.zeros(0, dtype=torch.int32, device=device)
    query = torch.zeros(0, 2, 16, device=device)
    assert tree_attention(query, pages, pages, table, lens, tree).shape == (0, 2, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(2, 6, 16)}, r"query: expected \[3, heads, dim\], got \[2, 6, 16\]"),
        ({"query": torch.zeros(3, 5, 16)}, "query: expected a multiple of 2 heads, got 5"),
        ({"query": torch.zeros(3, 6, 16).double()}, "query: expected float32, float16 or bfloat16"),
        ({"k_pages": torch.zeros(4, 24, 2, 16)}, "page_size of 16, 32, 64, ..., got 24"),
        ({"k_pages": torch.zeros(4, 16, 2, 8)}, "k_pages: expected"),
        ({"v_pages": torch.zeros(4, 16, 1, 16)}, "v_pages: expected"),
        ({"v_pages": torch.zeros(4, 16, 2, 16).half()}, "v_pages: expected torch.float32 as query"),
        ({"page_table": torch.zeros(2, 1).int()}, r"page_table: expected \[1, max_pages\] int32"),
        ({"context_lens": torch.zeros(1)}, r"context_lens: expected \[1\] int32"),
        (
            {"backend": "cute"},
            "expected a backend of auto, cuda, triton, sdpa, reference, got cute",
        ),
    ],
)
def test_errors_say_what_was_expected(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "query": torch.zeros(3, 6, 16),
        "k_pages": torch.zeros(4, 16, 2, 16),
        "v_pages": torch.zeros(4, 16, 2, 16),
        "page_table": torch.zeros(1, 1).int(),
        "context_lens": torch.zeros(1).int(),
        "tree": DraftTree.build([([1, 2, 3], [-1, 0, 0])]),
    }
    with pytest.raises(ValueError, match=message):
        tree_attention(**(good | change))


@pytest.mark.gpu
def test_captured_in_a_graph() -> None:
    """Contexts may grow between replays: nothing of theirs is read by the host."""
    query, paged, tree = example([40, 90], [6, 11], dim=64)
    k_pages, v_pages, page_table, context_lens = paged.tensors("cuda")
    trees, on_device = to_device(tree, "cuda"), query.cuda()
    assert trees.ancestor_bits.is_cuda  # derived before capture
    lens = context_lens.clone()
    tree_attention(on_device, k_pages, v_pages, page_table, lens, trees)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = tree_attention(on_device, k_pages, v_pages, page_table, lens, trees)
    for shorter in (0, 7, 40):
        lens.copy_(context_lens - shorter)
        graph.replay()
        less = Paged(paged.k_pages, paged.v_pages, paged.page_table, paged.context_lens - shorter)
        assert_near(out.cpu(), attention(query, less, tree, "reference"))
