"""tree_attention over a paged cache."""

import pytest
import torch

from bench.conftest import random_trees
from wanspec_kernels.attention import tree_attention

GPU_SHAPES = [(1, 64, 2048), (1, 64, 32_768), (8, 64, 8192), (64, 16, 4096)]
CPU_SHAPES = [(1, 32, 512)]
HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE = 32, 8, 128, 16


@pytest.mark.parametrize(("batch", "num_nodes", "context"), CPU_SHAPES + GPU_SHAPES)
def test_tree_attention(timed, device, batch, num_nodes, context):
    if (device.type == "cpu") != ((batch, num_nodes, context) in CPU_SHAPES):
        pytest.skip(f"not a shape for {device.type}")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    tree = random_trees(batch, num_nodes, 4096, device)
    pages_each = -(-(context + num_nodes) // PAGE_SIZE)
    shape = (batch * pages_each, PAGE_SIZE, KV_HEADS, HEAD_DIM)
    torch.manual_seed(0)
    k_pages, v_pages = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    query = torch.randn(batch * num_nodes, HEADS, HEAD_DIM, device=device, dtype=dtype)
    page_table = torch.randperm(batch * pages_each, device=device).int().view(batch, pages_each)
    context_lens = torch.full((batch,), context, dtype=torch.int32, device=device)

    def run(backend="auto"):
        return tree_attention(
            query, k_pages, v_pages, page_table, context_lens, tree, backend=backend
        )

    ours, oracle = run().double(), run("reference").double()
    error = torch.linalg.norm(ours - oracle) / torch.linalg.norm(oracle)
    assert error < (1e-5 if dtype == torch.float32 else 5e-3)
    timed(run)
