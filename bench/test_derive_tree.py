"""Depth, children, siblings and ancestor bits of trees: plain torch beside the CUDA kernel."""

import pytest
import torch

from bench.conftest import random_trees
from wanspec_kernels.tree import derive_reference

SHAPES = [(1, 64), (64, 64), (256, 8)]


def walk(parents):
    """The four fields of one tree of at most 64 nodes, node by node."""
    depth, first_child, next_sibling, bits = ([-1] * len(parents) for _ in range(4))
    last = {}
    for node, parent in enumerate(parents):
        above = bits[parent] if parent >= 0 else 0
        depth[node] = depth[parent] + 1 if parent >= 0 else 0
        bits[node] = above | 1 << node
        if parent in last:
            next_sibling[last[parent]] = node
        elif parent >= 0:
            first_child[parent] = node
        last[parent] = node
    signed = [bit - (1 << 64) if bit >= 1 << 63 else bit for bit in bits]
    return [depth, first_child, next_sibling, signed]


@pytest.mark.parametrize(("batch", "num_nodes"), SHAPES)
def test_torch(timed, device, batch, num_nodes):
    tree = random_trees(batch, num_nodes, 4096, device)
    depth, first_child, next_sibling, ancestor_bits = derive_reference(tree.parents, tree.indptr, 1)
    parents = tree.parents.view(batch, num_nodes).tolist()
    for b, row in enumerate(parents):
        here = slice(b * num_nodes, (b + 1) * num_nodes)
        expected = walk(row)
        derived = (depth, first_child, next_sibling, ancestor_bits[:, 0])
        assert [field[here].tolist() for field in derived] == expected
    timed(lambda: derive_reference(tree.parents, tree.indptr, 1))


@pytest.mark.parametrize(("batch", "num_nodes"), SHAPES)
def test_cuda(timed, device, batch, num_nodes):
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    pytest.importorskip("wanspec_kernels._C", reason="needs the CUDA extension: make cuda")
    tree = random_trees(batch, num_nodes, 4096, device)
    derive = torch.ops.wanspec.derive_tree_cuda
    expected = derive_reference(tree.parents, tree.indptr, 1)
    for ours, theirs in zip(derive(tree.parents, tree.indptr, 1), expected, strict=True):
        assert torch.equal(ours, theirs)
    timed(lambda: derive(tree.parents, tree.indptr, 1))
