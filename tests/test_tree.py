"""DraftTree: its checks on the host, and what it derives, against sets and loops."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wanspec_kernels.tree import MAX_NODES, DraftTree

parents = st.integers(0, 80).flatmap(
    lambda n: st.tuples(st.just(-1), *(st.integers(0, i) for i in range(n)))
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(parents, min_size=1, max_size=4), st.integers(0, 3))
def test_derived_fields(forest: list[tuple[int, ...]], padding: int) -> None:
    built = DraftTree.build([(range(len(tree)), tree) for tree in forest])
    pad = torch.full((padding,), -1, dtype=torch.int32)
    tree = DraftTree(
        torch.cat([built.token_ids, pad]),
        torch.cat([built.parents, pad]),
        built.indptr,
        built.max_nodes,
        built.max_depth,
    )
    row = 0
    for tree_parents in forest:
        ancestors: list[set[int]] = []
        for i, parent in enumerate(tree_parents):
            ancestors.append({i} | (ancestors[parent] if i else set()))
            children = [c for c, p in enumerate(tree_parents) if p == i]
            siblings = [s for s, p in enumerate(tree_parents) if s > i > 0 and p == parent]
            assert tree.depth[row] == len(ancestors[i]) - 1
            assert tree.first_child[row] == min(children, default=-1)
            assert tree.next_sibling[row] == min(siblings, default=-1)
            bits = [word % (1 << 64) for word in tree.ancestor_bits[row].tolist()]
            assert {
                64 * w + j for w, word in enumerate(bits) for j in range(64) if word >> j & 1
            } == (ancestors[i])
            row += 1
    assert int(tree.depth.max()) == tree.max_depth
    assert tree.depth[row:].tolist() == [-1] * padding


def test_build_lays_trees_side_by_side(device: str) -> None:
    tree = DraftTree.build([([7, 8], [-1, 0]), ([9], [-1])], device)
    assert tree.batch == 2
    assert tree.num_nodes == 3
    assert tree.device.type == device
    assert tree.token_ids.tolist() == [7, 8, 9]
    assert tree.parents.tolist() == [-1, 0, -1]
    assert tree.indptr.tolist() == [0, 2, 3]
    assert (tree.max_nodes, tree.max_depth) == (2, 1)
    assert {t.dtype for t in (tree.token_ids, tree.parents, tree.indptr)} == {torch.int32}


@pytest.mark.parametrize("name", ["token_ids", "parents", "indptr"])
@pytest.mark.parametrize(
    "change",
    [Tensor.long, lambda t: t.repeat(2)[::2], lambda t: t[None]],
    ids=["dtype", "stride", "dimensions"],
)
def test_tensors_the_kernels_could_not_read_raise(
    name: str, change: Callable[[Tensor], Tensor]
) -> None:
    tree = DraftTree.build([([1, 2, 3], [-1, 0, 0])])
    with pytest.raises(ValueError, match=r": expected contiguous \[.*\] torch.int32 on cpu, got"):
        replace(tree, **{name: change(getattr(tree, name))})


@pytest.mark.gpu
def test_derived_inside_a_capture_follows_the_trees() -> None:
    """A graph's static tensors take other trees; the extension's kernel or plain torch."""
    first = DraftTree.build([([1, 2, 3, 4], [-1, 0, 0, 2])], "cuda")
    second = DraftTree.build([([1, 2, 3, 4], [-1, 0, 1, 1])], "cuda")
    _ = first.depth  # what was derived before the capture does not count in it
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = replace(first)
        assert captured.depth.is_cuda
    first.parents.copy_(second.parents)
    graph.replay()
    for name in ("depth", "first_child", "next_sibling", "ancestor_bits"):
        assert torch.equal(getattr(captured, name), getattr(second, name)), name


def test_chains() -> None:
    tree = DraftTree.chains([[1, 2, 3], [4]])
    assert tree.parents.tolist() == [-1, 0, 1, -1]
    assert tree.depth.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("tokens", "tree_parents", "message"),
    [
        ([], [], "tree 1: expected 1..1024 nodes, got 0"),
        ([0] * (MAX_NODES + 1), [-1] + [0] * MAX_NODES, "expected 1..1024 nodes, got 1025"),
        ([1, 2], [-1], "expected 2 parents, got 1"),
        ([1], [0], "expected parent -1 at the root, got 0"),
        ([1, 2, 3], [-1, 2, 0], "node 1: expected a parent in 0..0, got 2"),
        ([1, 2], [-1, -1], "node 1: expected a parent in 0..0, got -1"),
        ([1, -1], [-1, 0], "node 1: expected a token id, got -1"),
        ([1, 1 << 31], [-1, 0], "node 1: expected a token id, got 2147483648"),
    ],
)
def test_an_invalid_tree_raises(tokens: list[int], tree_parents: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DraftTree.build([([5], [-1]), (tokens, tree_parents)])
