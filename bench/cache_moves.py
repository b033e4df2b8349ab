"""Writing into the KV cache's pages and compacting them, beside the bytes they move.

    python -m bench.cache_moves --out bench/results/cache_moves_h200.json --table table.md
    python -m bench.cache_moves --draw bench/results/cache_moves_h200.json

Both must leave what the reference leaves in every page before they are timed. Needs a CUDA device;
`bench/test_kv_cache.py` times the same calls as Python waits for them, on any machine.
"""

import random
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from bench import table
from bench.conftest import random_trees
from bench.test_kv_cache import ACCEPTED, HEAD_DIM, KV_HEADS, random_pages, same_as_the_reference
from bench.timing import Timing, time_calls
from wanspec_kernels.kv_cache import compact, write

SHAPES = ((1, 64, 2048), (8, 64, 8192), (64, 16, 4096), (64, 64, 4096))  # trees, nodes, context
ENTRY_BYTES = 2 * KV_HEADS * HEAD_DIM * 2  # a token's keys and values in bf16
COLD_BYTES = 150 << 20  # of inputs, so that they come from memory
CALLS = 20  # a graph; a graph of one call would be all launch
MAX_PAGES_BYTES = 12 << 30


def time_write(shape: tuple[int, int, int], device: torch.device, seconds: float) -> Timing:
    batch, nodes, context = shape
    tree = random_trees(batch, nodes, 4096, device)
    pages, places = random_pages(1, batch, nodes, context, device)
    sets = max(2, COLD_BYTES // (batch * nodes * ENTRY_BYTES))
    size = (min(sets, 40), 2, batch * nodes, KV_HEADS, HEAD_DIM)
    entries = torch.randn(size, device=device).to(pages[0].dtype)

    def run(backend: str, into: tuple[Tensor, ...], keys: Tensor, values: Tensor) -> None:
        write(into[0][0], into[1][0], keys, values, tree, *places, backend=backend)

    same_as_the_reference(lambda b, into: run(b, into, *entries[0]), pages, "triton")
    return time_calls([lambda e=e: run("triton", pages, *e) for e in entries], device, seconds)


def time_compact(
    shape: tuple[int, int, int], layers: int, device: torch.device, seconds: float
) -> Timing:
    batch, nodes, context = shape
    pages, places = random_pages(layers, batch, nodes, context, device)
    host = random.Random(0)
    paths = [sorted(host.sample(range(1, nodes), ACCEPTED)) for _ in range(batch)]
    accepted = torch.tensor(paths, dtype=torch.int32).to(device)
    counts = torch.full((batch,), ACCEPTED, dtype=torch.int32, device=device)

    def run(backend: str, into: tuple[Tensor, ...]) -> None:
        compact(*into, accepted, counts, *places, backend=backend)

    same_as_the_reference(run, pages, "triton")
    return time_calls([lambda: run("triton", pages)] * CALLS, device, seconds)


def main(
    out: table.Out = None,
    table_file: table.TableFile = None,
    commit: table.Commit = "",
    seconds: Annotated[float, typer.Option(help="Device time for each figure.")] = 0.1,
    draw: table.Draw = None,
) -> None:
    """Time writes and compactions of the KV cache; write JSON and Markdown."""
    if draw is not None:
        table.write(table_file, markdown(table.load(draw)))
        return
    if not torch.cuda.is_available():
        typer.echo("skipped: moves of the KV cache: no CUDA device here")
        return
    device = torch.device("cuda")
    results = table.begin("bench.cache_moves", commit, device) | {"rows": []}
    for shape in SHAPES:
        batch, nodes, context = shape
        pages_bytes = batch * (context + nodes) * ENTRY_BYTES
        layers = max(1, min(32, MAX_PAGES_BYTES // (3 * pages_bytes)))  # and two copies to compare
        results["rows"].append(
            {
                "batch": batch,
                "nodes": nodes,
                "context": context,
                "layers": layers,
                "write": time_write(shape, device, seconds).as_dict(),
                "write_bytes": 2 * batch * nodes * ENTRY_BYTES,  # read and written
                "compact": time_compact(shape, layers, device, seconds).as_dict(),
                "compact_bytes": 2 * layers * batch * ACCEPTED * ENTRY_BYTES,
            }
        )
        torch.cuda.empty_cache()
        typer.echo(markdown(results).splitlines()[-1])
    if out is not None:
        table.save(results, out)
    table.write(table_file, markdown(results))


def markdown(results: dict[str, Any]) -> str:
    lines = [
        table.heading(results),
        "",
        f"Microseconds a call, median of graph replays; {KV_HEADS} key heads of {HEAD_DIM}, bf16, "
        f"pages of 16, shuffled. `write` puts one layer's keys and values of all nodes in place, "
        f"`compact` moves {ACCEPTED} accepted nodes' of all layers stated, the same ones in every "
        "replay, which L2 may hold. Floor: the bytes read and written at the copy's bandwidth. All "
        "pages were compared with the reference's first.",
        "",
        "| trees × nodes, context | `write` | floor | `compact` (layers) | floor |",
        "|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        cells = [f"{row['batch']} × {row['nodes']}, {row['context']:,}"]
        for name, note in (("write", ""), ("compact", f" ({row['layers']})")):
            floor = row[f"{name}_bytes"] / results["copy_bytes_per_second"] * 1e6
            cells += [f"{row[name]['median_us']:.1f}{note}", f"{floor:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
