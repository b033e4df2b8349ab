"""What the benchmarks draw, and that their cases accept what they say."""

import copy
from pathlib import Path
from typing import Any

import pytest

from bench import table
from bench.cases import MODES, RULES, accepted_case

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
