"""Depth, children, siblings and ancestor bits of trees: plain torch beside the CUDA kernel."""

import pytest
import torch

from bench.conftest import random_trees
from wanspec_kernels.tree import derive_reference

SHAPES = [(1, 64), (64, 64), (256, 8)]


@pytest.mark.parametrize(("batch", "num_nodes"), SHAPES)
def test_torch(timed, device, batch, num_nodes):
    tree = random_trees(batch, num_nodes, 4096, device)
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
