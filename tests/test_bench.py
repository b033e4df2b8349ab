"""What the benchmarks draw, and that their cases accept what they say."""

import copy
from pathlib import Path
from typing import Any

import pytest

from bench import table, target_pass
from bench.cases import MODES, RULES, accepted_case
from bench.pass_split import parts_of

ENTRY = {
    "status": "ok",
    "checked": {},
    "extra_bytes": 3 << 20,
    "median_us": 20.04,
    "min_us": 19.0,
    "p90_us": 21.0,
    "eager_us": 40.0,
    "samples": 9,
    "method": "graph",
    "why_no_graph": "",
}
RESULTS: dict[str, Any] = {
    "format": 1,
    "started": "2026-11-24T10:00:00+00:00",
    "machine": {
        "gpu": "NVIDIA H200", "driver": "580.1", "cuda": "13.0", "l2_mib": 60.0, "cpu": "EPYC",
        "cpus": 16, "torch": "2.11.0", "triton": "3.6.0", "flashinfer-python": None,
        "commit": "1a2b3c4",
    },
    "copy_bytes_per_second": 4e12,
    "skipped": {"vllm": "vllm: No module named 'vllm'"},
    "rows": [
        {
            "id": "shapes/match/temperature/8x64/a3", "series": "shapes", "rule": "match",
            "mode": "temperature", "batch": 8, "num_nodes": 64, "depth": 3, "vocab": 128_256,
            "path_bytes": 8_000_000,
            "entries": {
                "flashinfer": ENTRY | {"median_us": 2411.4, "method": "events"},
                "cuda": ENTRY,
                "triton": {"status": "wrong: AssertionError: other nodes accepted"},
            },
        }
    ],
}  # fmt: skip


def test_markdown() -> None:
    lines = table.markdown(RESULTS).splitlines()
    assert "NVIDIA H200" in lines[0]
    assert "commit 1a2b3c4" in lines[0]
    assert (
        "| trees × nodes | accepted | ours, CUDA | ours, Triton | floor | FlashInfer, no walk |"
        in lines
    )
    assert "| 8 × 64 | 3 | 20.0 | wrong | 2.0 | *2,411* |" in lines
    assert lines[-1] == "- Not timed: vLLM chain (vllm: No module named 'vllm')."


def test_failures_are_named() -> None:
    assert table.failures(RESULTS) == [
        "shapes/match/temperature/8x64/a3: triton: wrong: AssertionError: other nodes accepted"
    ]


def test_results_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results" / "verify.json"
    table.save(RESULTS, path)
    assert table.load(path) == RESULTS


def test_another_format_is_refused(tmp_path: Path) -> None:
    results = copy.deepcopy(RESULTS) | {"format": 2}
    table.save(results, tmp_path / "verify.json")
    with pytest.raises(ValueError, match="expected format 1, got 2"):
        table.load(tmp_path / "verify.json")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", MODES)
def test_a_case_accepts_its_depth(mode: str, rule: str) -> None:
    case = accepted_case(3, 12, 1000, "cpu", depth=4, mode=mode, rule=rule)
    result = case.verify("reference")
    assert result.num_accepted.tolist() == [4, 4, 4]
    alone = case.at([1]).verify("reference")
    width = alone.token_ids.shape[1]
    assert alone.token_ids[0].tolist() == result.token_ids[1, :width].tolist()


LAYER = (
    ["reduce_kernel", "elementwise_kernel"]  # norm
    + ["nvjet_sm90_qkv_splitK", "cublasLt::splitKreduce_kernel"]
    + ["CatArrayBatchedCopy", "write_kernel", "tree_attention_kernel", "merge_splits_kernel"]
    + ["nvjet_sm90_o", "triton_red_fused_add", "nvjet_sm90_gate_up", "silu_kernel"]
    + ["elementwise_kernel", "nvjet_sm90_down", "elementwise_kernel"]
)
PARTS = (
    ["norms"] * 2
    + ["query, key and value"] * 2
    + ["rotary", "key and value pages", "attention", "attention"]
    + ["attention's output", "norms", "gate and up", "activation", "activation", "down", "norms"]
)


def test_kernels_of_a_pass_find_their_parts() -> None:
    last = ["elementwise_kernel", "nvjet_sm90_512x64", "cublasLt::splitKreduce_kernel"]
    assert parts_of(LAYER * 2 + last) == PARTS * 2 + ["norms", "lm_head", "lm_head"]


def pass_row(nodes: int, median_us: float) -> dict[str, Any]:
    names = ["launched", "captured", "compiled"] + [target_pass.DECODING] * (nodes == 1)
    entry = {"status": "ok", "identical": True, "relative_error": 1e-3}
    entries = {n: entry | {"median_us": median_us * (i + 1)} for i, n in enumerate(names[::-1])}
    return {"batch": 1, "nodes": nodes, "context": 2048, "entries": entries}


def test_a_table_of_passes() -> None:
    """The ratio is to the faster of both ways to decode."""
    split = {"batch": 1, "nodes": 64, "entry": "compiled", "parts": {"gate": [5000.0, 32.0]}}
    results = RESULTS | {
        "attention": "cuda", "weight_bytes": 17e9, "embedding_bytes": 1e9, "splits": [split],
        "rows": [pass_row(1, 5000.0), pass_row(64, 5500.0)],
    }  # fmt: skip
    lines = target_pass.markdown(results).splitlines()
    assert "by this backend or by `triton`" in lines[2]
    assert "take 4.00 ms" in lines[2]
    assert "| 1 × 64, 2,048 | 5.00 | 5.50 | 1.10 | 15.00 | 11.00 | 0.73 | 16.50 |" in lines
    assert "| gate | 5.00 (32) |" in lines
    assert "| between kernels | 0.50 |" in lines
