"""verify_tree from bf16 logits, three drafts accepted; bench.peers has the clock without Python."""

from functools import lru_cache

import pytest
import torch

from bench.cases import MODES, RULES, accepted_case
from bench.conftest import ON_GPU, backend_or_skip, shapes

GPU_SHAPES = [(batch, nodes, 128_256) for batch, nodes in ((1, 64), (8, 64), (64, 8), (64, 64))]
CPU_SHAPES = [(1, 64, 4096), (8, 64, 4096)]
make_case = lru_cache(maxsize=1)(accepted_case)  # backends come in turn on one case


@pytest.mark.parametrize("backend", ["cuda", "triton", "reference"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("batch", "num_nodes", "vocab"), shapes(CPU_SHAPES, GPU_SHAPES))
def test_verify(timed, device, batch, num_nodes, vocab, rule, mode, backend):
    if backend == "reference" and ON_GPU:
        pytest.skip("the oracle is for checking: on a GPU it takes seconds")
    backend_or_skip(accepted_case(1, 4, 256, device, rule=rule).verify, backend)
    case = make_case(batch, num_nodes, vocab, device, rule=rule, mode=mode)
    ours = case.verify(backend)
    assert (ours.num_accepted == case.accepted_depth).all()
    chosen = list(range(min(batch, 4)))
    oracle = case.at(chosen).verify("reference")
    width = oracle.token_ids.shape[1]
    assert torch.equal(ours.token_ids[: len(chosen), :width], oracle.token_ids)
    timed(lambda: case.verify(backend))
