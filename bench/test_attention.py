"""tree_attention over a paged cache."""

import pytest
import torch

from bench.attention_cases import Layout, make_case
from bench.conftest import backend_or_skip, shapes
from wanspec_kernels.attention import tree_attention

GPU_SHAPES = [(1, 64, 2048), (1, 64, 32_768), (8, 64, 8192), (64, 16, 4096)]
CPU_SHAPES = [(1, 32, 512)]
OPTIONS = {
    "window": {"window": 128},  # as gpt-oss has it
    "softcap": {"softcap": 50.0},
    "sinks": {"sinks": torch.zeros(Layout.heads)},
    "float8": dict.fromkeys(("k_scale", "v_scale"), torch.full((Layout.kv_heads,), 0.02)),
}


@pytest.mark.parametrize("backend", ["cuda", "triton", "sdpa"])
@pytest.mark.parametrize(("batch", "num_nodes", "context"), shapes(CPU_SHAPES, GPU_SHAPES))
def test_tree_attention(timed, device, batch, num_nodes, context, backend):
    _check_and_time(timed, device, batch, num_nodes, context, backend)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("batch", "num_nodes", "context"), shapes(CPU_SHAPES, GPU_SHAPES[1:3]))
def test_option(timed, device, batch, num_nodes, context, option):
    backend = "triton" if device.type == "cuda" else "sdpa"
    _check_and_time(timed, device, batch, num_nodes, context, backend, OPTIONS[option])


def _check_and_time(timed, device, batch, num_nodes, context, backend, options=None):
    case = make_case([num_nodes] * batch, [context] * batch, device)
    k_pages, v_pages = case.k_pages, case.v_pages
    options = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in (options or {}).items()
    }
    if "k_scale" in options:
        k_pages = (k_pages / options["k_scale"][0]).to(torch.float8_e4m3fn)
        v_pages = (v_pages / options["v_scale"][0]).to(torch.float8_e4m3fn)

    def run(backend):
        slots = (case.page_table, case.context_lens, case.tree)
        return tree_attention(case.query, k_pages, v_pages, *slots, backend=backend, **options)

    backend_or_skip(run, backend)
    ours, oracle = run(backend).double(), run("reference").double()
    error = torch.linalg.norm(ours - oracle) / torch.linalg.norm(oracle)
    assert error < (1e-5 if case.query.dtype == torch.float32 else 5e-3)
    timed(lambda: run(backend))
