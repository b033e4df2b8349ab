"""A pass over trees beside plain decoding of the same model, both replayed from CUDA graphs.

    python -m bench.target_pass --out bench/results/target_pass_h100.json --table table.md
    python -m bench.target_pass --draw bench/results/target_pass_h100.json

The model has the shape of an 8B Llama and random weights; contexts are random keys and values. Each
batch's captured logits are compared with those of the same pass launched from Python before either
is timed. Needs a CUDA device with 60 GB for batches of 64.
"""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from bench import machine, table
from bench.conftest import random_trees
from bench.pass_split import split_pass
from bench.timing import copy_bandwidth, time_launched, time_queued
from wanspec_kernels.target import Capacity, Target
from wanspec_kernels.target.attention_hook import IMPLEMENTATION
from wanspec_kernels.tree import DraftTree

BATCHES, NODES, CONTEXTS = (1, 8, 64), (8, 16, 64), (2048, 4096)
SPLITS = ((1, 1), (1, 64), (8, 1), (8, 64))  # trees and nodes whose passes are taken apart
SPLIT_CONTEXT = CONTEXTS[0]
PAGE_SIZE = 16
VOCAB = 128_256
MAX_ERROR = 1e-2  # relative, of all logits: what another order of bf16 sums may give

Batch = tuple[DraftTree, Tensor, Tensor]


def main(
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes.")] = None,
    table_file: Annotated[
        Path | None, typer.Option("--table", help="Where the Markdown goes.")
    ] = None,
    commit: Annotated[str, typer.Option(help="What is measured, where git cannot say.")] = "",
    batches: Annotated[str, typer.Option(help="Trees a pass, comma between.")] = "1,8,64",
    seconds: Annotated[float, typer.Option(help="Device time for each figure.")] = 0.3,
    draw: Annotated[Path | None, typer.Option(help="Only draw the table of these results.")] = None,
) -> None:
    """Time passes over trees beside decoding; write JSON and Markdown."""
    if draw is not None:
        table.write(table_file, markdown(table.load(draw)))
        return
    if not torch.cuda.is_available():
        typer.echo("skipped: passes over trees: no CUDA device here")
        return
    device = torch.device("cuda")
    chosen = [int(b) for b in batches.split(",")]
    results: dict[str, Any] = {
        "format": table.FORMAT,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", "bench.target_pass", *sys.argv[1:]],
        "machine": machine.describe(commit),
        "copy_bytes_per_second": copy_bandwidth(device),
        "rows": [],
        "splits": [],
    }
    typer.echo(table.heading(results))
    began = time.monotonic()
    target = make_target(device, max(chosen))
    results["weight_bytes"] = sum(p.nbytes for p in target.model.parameters())
    results["embedding_bytes"] = target.model.get_input_embeddings().weight.nbytes
    typer.echo(f"{time.monotonic() - began:6.1f} s  the model is there")
    launched = Target(target.model, num_pages=1)  # without graphs, over the same pages
    launched.cache = target.cache
    target.capture(Capacity(b, b * n, n) for b in chosen for n in (1, *NODES))
    typer.echo(f"{time.monotonic() - began:6.1f} s  captured")
    for context in CONTEXTS:
        for b in chosen:
            for n in (1, *NODES):
                row = run_row(target, launched, b, n, context, seconds)
                results["rows"].append(row)
                typer.echo(f"{time.monotonic() - began:6.1f} s  {row}")
                if out is not None:
                    table.save(results, out)  # after every row: a run may be cut short
    for b, n in SPLITS:
        if b not in chosen:
            continue
        batch = make_batch(target, b, n, SPLIT_CONTEXT)
        found = split_pass(lambda batch=batch: target.logits(*batch))
        results["splits"].append({"batch": b, "nodes": n, "context": SPLIT_CONTEXT, **found})
    if out is not None:
        table.save(results, out)
    table.write(table_file, markdown(results))
    if any(row["status"] != "ok" for row in results["rows"]):
        raise typer.Exit(1)


def make_target(device: torch.device, batch: int) -> Target:
    """An 8B Llama of random weights, with random entries in pages for `batch` requests."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=IMPLEMENTATION
        )
    longest = max(CONTEXTS) + max(NODES)
    pages = -(-longest // PAGE_SIZE)
    target = Target(model, num_pages=batch * pages, page_size=PAGE_SIZE, max_length=longest)
    for entries in (target.cache.k_pages, target.cache.v_pages):
        for layer in entries:
            layer.normal_()
    return target


def make_batch(target: Target, batch: int, nodes: int, context: int) -> Batch:
    """Random trees of `nodes` after contexts in pages all over the cache."""
    torch.manual_seed(batch + nodes)
    tree = random_trees(batch, nodes, VOCAB, target.device)
    width = -(-(context + nodes) // PAGE_SIZE)
    pages = torch.randperm(target.cache.num_pages)[: batch * width]
    lens = torch.full((batch,), context, dtype=torch.int32, device=target.device)
    return tree, lens, pages.int().view(batch, width).to(target.device)


def run_row(
    target: Target, launched: Target, batch: int, nodes: int, context: int, seconds: float
) -> dict[str, Any]:
    """Check and time one shape."""
    inputs = make_batch(target, batch, nodes, context)
    expected, logits = launched.logits(*inputs), target.logits(*inputs)
    row: dict[str, Any] = {"batch": batch, "nodes": nodes, "context": context}
    row["identical"] = torch.equal(logits, expected)
    difference = (logits - expected).norm(dtype=torch.float32)
    row["relative_error"] = float(difference / expected.norm(dtype=torch.float32))
    if not row["relative_error"] < MAX_ERROR:
        return row | {"status": f"wrong: relative error {row['relative_error']:.2e}"}
    del expected, logits, difference
    graph = time_queued(lambda: target.logits(*inputs), seconds)
    python = time_launched(lambda: launched.logits(*inputs), seconds)
    return row | {"status": "ok", "graph": graph.as_dict(), "launched": python.as_dict()}


def floor_ms(results: dict[str, Any]) -> float:
    """All weights but the embedding's read once, at the copy's bandwidth."""
    read = results["weight_bytes"] - results["embedding_bytes"]
    return float(read / results["copy_bytes_per_second"] * 1e3)


def markdown(results: dict[str, Any]) -> str:
    """Both tables, with what was run above."""
    lines = [
        table.heading(results),
        "",
        "Milliseconds a pass, median, its inputs copied in; 8B Llama (32 layers of 4096, "
        "32 query and 8 key heads of 128, 14,336 inside, V = 128,256), bf16, random weights. "
        "Decoding: a pass of one token a request, captured the same way. Every pass's captured "
        "logits were compared with those of its launches from Python first. Reading the weights "
        f"once takes {floor_ms(results):.2f} ms at the copy's bandwidth.",
        "",
        "| trees × nodes, context | decoding | trees | trees ÷ decoding | launched from Python |"
        " a node |",
        "|" + "---|" * 6,
    ]
    decoding = {
        (row["batch"], row["context"]): row["graph"]["median_us"]
        for row in results["rows"]
        if row["nodes"] == 1 and row["status"] == "ok"
    }
    for row in results["rows"]:
        base = decoding.get((row["batch"], row["context"]))
        if row["nodes"] == 1:
            continue
        name = f"| {row['batch']} × {row['nodes']}, {row['context']:,} |"
        if row["status"] != "ok" or base is None:
            lines.append(f"{name} {row['status'].partition(':')[0]} | | | | |")
            continue
        graph, python = row["graph"]["median_us"], row["launched"]["median_us"]
        nodes = row["batch"] * row["nodes"]
        lines.append(
            f"{name} {base / 1e3:.2f} | {graph / 1e3:.2f} | {graph / base:.2f} | "
            f"{python / 1e3:.1f} | {graph / nodes:,.0f} µs |"
        )
    if results["splits"]:
        lines += ["", *split_table(results)]
    return "\n".join(lines) + "\n"


def split_table(results: dict[str, Any]) -> list[str]:
    """Where the time goes: kernels of the same graphs, by torch's profiler."""
    splits = results["splits"]
    medians = {
        (row["batch"], row["nodes"], row["context"]): row["graph"]["median_us"]
        for row in results["rows"]
        if row["status"] == "ok"
    }
    titles = [f"{s['batch']} × {s['nodes']}" for s in splits]
    lines = [
        f"Where it goes, milliseconds (and kernels), context {splits[0]['context']:,}:",
        "",
        "| part | " + " | ".join(titles) + " |",
        "|" + "---|" * (len(titles) + 1),
    ]
    for part in dict.fromkeys(part for s in splits for part in s["parts"]):
        cells = [s["parts"].get(part, [0, 0]) for s in splits]
        numbers = " | ".join(f"{us / 1e3:.2f} ({count:.0f})" for us, count in cells)
        lines.append(f"| {part} | {numbers} |")
    rest = []
    for s in splits:
        median = medians.get((s["batch"], s["nodes"], s["context"]))
        inside = sum(us for us, _ in s["parts"].values())
        rest.append("–" if median is None else f"{(median - inside) / 1e3:.2f}")
    lines.append("| between kernels | " + " | ".join(rest) + " |")
    return lines


if __name__ == "__main__":
    typer.run(main)
