"""Tree attention beside others' on the same inputs in one run: checked first, then timed.

    python -m bench.attention_peers --out bench/results/attention_h200.json --table table.md
    python -m bench.attention_peers --draw bench/results/attention_h200.json

Each backend and each peer with a tree mask must come within 5e-3 of the float64 oracle (relative
error of the whole output) before it is timed. Needs a CUDA device.
"""

import random
import time
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from bench import table
from bench.attention_cases import AttentionCase, Layout, make_case
from bench.attention_peer_adapters import PEERS
from bench.peer_adapters import NotInstalled
from bench.timing import time_calls

OURS = ("cuda", "triton")
LABELS = {"cuda": "ours, CUDA", "triton": "ours, Triton"} | {p.name: p.label for p in PEERS}
SHAPES = (
    (1, 64, 2048),
    (1, 64, 32_768),
    (8, 64, 8192),
    (64, 16, 4096),
    (64, 64, 4096),
    (64, 8, 8192),
)
# Of other models and caches, on 8 trees of 64 nodes; by ours alone.
LAYOUTS = {
    "dim 64": Layout(dim=64),
    "dim 256": Layout(dim=256),
    "fp16": Layout(dtype=torch.float16),
    "pages of 64": Layout(page_size=64),
    "pages of 256": Layout(page_size=256),
    "32 kv heads, 32 heads": Layout(kv_heads=32),
    "8 kv heads, 64 heads": Layout(heads=64),
    "2 kv heads, 32 heads": Layout(kv_heads=2),
}
USUAL = Layout()
MAX_ERROR = 5e-3
MATRIX_SIZE = 8192


def main(
    out: table.Out = None,
    table_file: table.TableFile = None,
    peers: Annotated[str, typer.Option(help="Names of peers, comma between.")] = ",".join(
        p.name for p in PEERS
    ),
    commit: table.Commit = "",
    seconds: Annotated[float, typer.Option(help="Device time for each figure.")] = 0.2,
    limit: Annotated[float, typer.Option(help="Seconds after which no row is begun; 0: none.")] = 0,
    draw: table.Draw = None,
) -> None:
    """Time tree attention beside FlashInfer, SDPA and FlexAttention; write JSON and Markdown."""
    if draw is not None:
        table.write(table_file, markdown(table.load(draw)))
        return
    if not torch.cuda.is_available():
        typer.echo("skipped: attention beside peers: no CUDA device here")
        return
    device = torch.device("cuda")
    results = table.begin("bench.attention_peers", commit, device) | {
        "operations_per_second": matrix_rate(device),
        "skipped": {},
        "rows": [],
    }
    typer.echo(table.heading(results))
    chosen = peers.split(",")
    started = time.monotonic()
    for shape in rows():
        if limit and time.monotonic() - started > limit:
            results["skipped"]["rows"] = f"from {shape.name} on: not reached within {limit:g} s"
            break
        row = run_row(shape, device, chosen, seconds, results["skipped"])
        results["rows"].append(row)
        cells = " | ".join(f"{n} {table.cell(e)}" for n, e in row["entries"].items())
        typer.echo(f"{time.monotonic() - started:6.1f} s  {shape.name:34} {cells}")
        if out is not None:
            table.save(results, out)  # after every row: a run may be cut short
    if out is not None:
        table.save(results, out)
    table.write(table_file, markdown(results))
    if any(e["status"].startswith("wrong") for r in results["rows"] for e in r["entries"].values()):
        raise typer.Exit(1)


@dataclass(frozen=True)
class Shape:
    """A row of the table."""

    name: str
    nodes: list[int]
    contexts: list[int]
    kind: str = "random"
    layout: Layout = USUAL


def rows() -> list[Shape]:
    """The judged table first."""
    found = [Shape(f"{b} × {n}, {c:,}", [n] * b, [c] * b) for b, n, c in SHAPES]
    host = random.Random(3)
    nodes = [host.randrange(1, 65) for _ in range(64)]
    contexts = [int(100 * 320 ** host.random()) for _ in nodes]  # 100 to 32,000
    mean = round(sum(nodes) / len(nodes))
    # Regular trees with as many keys and values, and as many scores.
    context = round(sum(n * c for n, c in zip(nodes, contexts, strict=True)) / sum(nodes))
    found.append(Shape(f"64 × 1–64, 100–32,000 ({context:,} on average)", nodes, contexts))
    found.append(Shape(f"64 × {mean}, {context:,}", [mean] * 64, [context] * 64))
    eight = ("8 × 64, 8,192, ", [64] * 8, [8192] * 8)
    found += [Shape(eight[0] + kind, *eight[1:], kind=kind) for kind in ("chain", "star")]
    found += [Shape(eight[0] + name, *eight[1:], layout=item) for name, item in LAYOUTS.items()]
    return found


def run_row(
    shape: Shape, device: torch.device, peers: list[str], seconds: float, skipped: dict[str, str]
) -> dict[str, Any]:
    """Check and time everything on one row; what fails is recorded, not raised."""

    def case(seed: int) -> AttentionCase:
        return make_case(shape.nodes, shape.contexts, device, seed, shape.kind, shape.layout)

    first = case(0)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    sets = min(24, ceil(2.5 * cache / first.bytes_read))
    cases = [first, *(case(seed) for seed in range(1, sets))]
    oracle = first.attend("reference").double()
    entries: dict[str, Any] = {}
    for backend in OURS:
        calls = [lambda case=case, backend=backend: case.attend(backend) for case in cases]
        entries[backend] = _entry(calls, oracle, device, seconds)
    for peer in PEERS if shape.layout == USUAL else ():
        if peer.name not in peers:
            continue
        try:
            calls = [peer.prepare(case) for case in cases[: 4 if peer.name == "flex" else sets]]
            expected = oracle if peer.is_masked else None
            entries[peer.name] = _entry(calls, expected, device, seconds)
        except NotInstalled as error:
            skipped[peer.name] = str(error)
        except Exception as error:
            entries[peer.name] = {"status": f"failed: {table.brief(error)}"}
    return {
        "name": shape.name,
        "bytes": first.bytes_read,
        "operations": first.operations,
        "sets": sets,
        "entries": entries,
    }


def _entry(
    calls: list[Any], oracle: Tensor | None, device: torch.device, seconds: float
) -> dict[str, Any]:
    try:
        error = None
        if oracle is not None:
            difference = calls[0]().double() - oracle
            error = float(torch.linalg.norm(difference) / torch.linalg.norm(oracle))
            if not error < MAX_ERROR:
                return {"status": f"wrong: relative error {error:.2e}"}
        timing = time_calls(calls, device, seconds)
    except Exception as failure:
        return {"status": f"failed: {table.brief(failure)}"}
    return {"status": "ok", "relative_error": error, **timing.as_dict()}


def matrix_rate(device: torch.device) -> float:
    """Operations a second of a large bf16 matrix product on random data."""
    a, b = (
        torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device, dtype=torch.bfloat16) for _ in range(2)
    )
    timing = time_calls([lambda: a @ b], device, 0.3)
    return 2 * MATRIX_SIZE**3 / (timing.median_us * 1e-6)


def floor_us(row: dict[str, Any], results: dict[str, Any]) -> float:
    by_bytes = row["bytes"] / results["copy_bytes_per_second"]
    by_operations = row["operations"] / results["operations_per_second"]
    return float(max(by_bytes, by_operations) * 1e6)


def markdown(results: dict[str, Any]) -> str:
    """The table, with what was run above and what the columns do below."""
    used = [n for n in LABELS if any(n in row["entries"] for row in results["rows"])]
    lines = [
        table.heading(results),
        "",
        "Microseconds a call, median of graph replays over enough sets of inputs that keys and "
        "values come from memory; 32 query and 8 key heads of 128, bf16, pages of 16, random trees "
        "unless said. Every output with a tree mask was within 5e-3 of the float64 oracle first. "
        "Floor: keys and values at the copy's bandwidth, or both products at "
        f"{results['operations_per_second'] / 1e12:,.0f} TFLOP/s, whichever is more.",
        "",
        "| trees × nodes, context | floor | " + " | ".join(LABELS[n] for n in used) + " |",
        "|" + "---|" * (len(used) + 2),
    ]
    for row in results["rows"]:
        cells = [table.cell(row["entries"].get(n)) for n in used]
        lines.append(
            f"| {row['name']} | {table.microseconds(floor_us(row, results))} | "
            + " | ".join(cells)
            + " |"
        )
    lines += ["", *(f"- {p.label}: {p.does}." for p in PEERS if p.name in used)]
    lines += [f"- Not timed: {n} ({why})." for n, why in results["skipped"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
