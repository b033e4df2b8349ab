"""verify_tree from bf16 logits; acceptance as with drafts that hold the target's token often."""

import pytest
import torch

from bench.conftest import random_trees
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.verify import verify_tree

GPU_SHAPES = [(1, 64, 128_256), (8, 64, 128_256), (64, 8, 128_256), (64, 64, 128_256)]
CPU_SHAPES = [(1, 64, 4096), (8, 64, 4096)]
FILTERS = {"temperature": {}, "top_k_top_p": {"top_k": 50, "top_p": 0.9}}


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize(("batch", "num_nodes", "vocab_size"), CPU_SHAPES + GPU_SHAPES)
def test_match(timed, device, batch, num_nodes, vocab_size, filters):
    if (device.type == "cpu") != ((batch, num_nodes, vocab_size) in CPU_SHAPES):
        pytest.skip(f"not a shape for {device.type}")
    tree = random_trees(batch, num_nodes, vocab_size, device)
    torch.manual_seed(0)
    logits = torch.randn(batch * num_nodes, vocab_size, device=device, dtype=torch.bfloat16)
    logits *= 2
    # Three levels of agreement: the first child's token is what the target says.
    rows = tree.indptr[:-1].long()
    for _ in range(3):
        child = tree.first_child[rows].long()
        inner = child >= 0
        children = tree.indptr[:-1].long() + child
        logits[rows[inner], tree.token_ids[children[inner]].long()] = 40.0
        rows = torch.where(inner, children, rows)
    sampling = SamplingParams.build(
        batch, temperature=0.8, seed=list(range(batch)), device=device, **FILTERS[filters]
    )
    positions = torch.full((batch,), 100, device=device)

    def run(backend="auto"):
        return verify_tree(tree, logits, sampling, positions, backend=backend)

    ours, oracle = run(), run("reference")
    assert torch.equal(ours.token_ids, oracle.token_ids)
    assert torch.equal(ours.num_accepted, oracle.num_accepted)
    timed(run)
