"""A pass over trees beside plain decoding of the same model, both replayed from CUDA graphs.

    python -m bench.target_pass --out bench/results/target_pass_h100.json --table table.md
    python -m bench.target_pass --draw bench/results/target_pass_h100.json

The model has the shape of an 8B Llama and random weights; contexts are random keys and values. A
pass's captured logits are compared with those of the same pass launched from Python before it is
timed. Needs a CUDA device with 64 GB for batches of 64.
"""

import time
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from bench import table
from bench.conftest import random_trees
from bench.pass_split import split_pass
from bench.timing import time_launched, time_queued
from wanspec_kernels.engine.model import Capacity, Target
from wanspec_kernels.engine.model.attention_hook import IMPLEMENTATION
from wanspec_kernels.kv_cache import PagedKVCache
from wanspec_kernels.tree import DraftTree

NODES, CONTEXTS = (8, 16, 64), (2048, 4096)
SPLITS = ((1, 1), (1, 64), (8, 1), (8, 64))  # trees and nodes whose passes are taken apart
PAGE_SIZE = 16
VOCAB = 128_256
DECODING = "compiled, triton"  # plain decoding by the backend that may be faster for one row
MAX_ERROR = 2e-2  # relative, of all logits: what another order of bf16 sums gives

Batch = tuple[DraftTree, Tensor, Tensor]


def main(
    out: table.Out = None,
    table_file: table.TableFile = None,
    commit: table.Commit = "",
    batches: Annotated[str, typer.Option(help="Trees a pass, comma between.")] = "1,8,64",
    attention: Annotated[str, typer.Option(help="Backend of tree_attention.")] = "auto",
    seconds: Annotated[float, typer.Option(help="Device time for each figure.")] = 0.2,
    draw: table.Draw = None,
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
    results = table.begin("bench.target_pass", commit, device) | {
        "attention": attention,
        "rows": [],
        "splits": [],
    }
    typer.echo(table.heading(results))
    began = time.monotonic()

    def report(text: str) -> None:
        typer.echo(f"{time.monotonic() - began:6.1f} s  {text}")
        if out is not None:
            table.save(results, out)  # after every row: a run may be cut short

    targets = make_targets(device, max(chosen), attention)
    model = targets["launched"].model
    results["weight_bytes"] = sum(p.nbytes for p in model.parameters())
    results["embedding_bytes"] = model.get_input_embeddings().weight.nbytes
    report("the model is there")
    for name in list(targets)[1:]:
        nodes = (1,) if name == DECODING else (1, *NODES)
        capacities = [Capacity(b, b * n, n) for b in chosen for n in nodes]
        targets[name].capture(capacities, compiled=name != "captured")
        report(name)
    for context in CONTEXTS:
        for b in chosen:
            for n in (1, *NODES):
                row = run_row(targets, b, n, context, seconds)
                results["rows"].append(row)
                entries = row["entries"].items()
                cells = " | ".join(f"{name} {cell(entry)}" for name, entry in entries)
                report(f"{b} × {n}, {context}: {cells}")
    for b, n in SPLITS:
        if b in chosen:
            batch = make_batch(targets["compiled"], b, n, CONTEXTS[0])
            for name in ("captured", "compiled"):
                found = split_pass(lambda name=name, batch=batch: targets[name].logits(*batch))
                results["splits"].append({"batch": b, "nodes": n, "entry": name, **found})
    report("taken apart")
    table.write(table_file, markdown(results))
    if any(e["status"] != "ok" for row in results["rows"] for e in row["entries"].values()):
        raise typer.Exit(1)


def make_targets(device: torch.device, batch: int, attention: str) -> dict[str, Target]:
    """All of one 8B Llama of random weights, and over the same pages with random entries."""
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
    with device, torch.no_grad():
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=IMPLEMENTATION
        )
        # As trained models have it, a layer adds little to what it is given. Else rounding in the
        # first layers would decide what comes out of the last.
        model.get_input_embeddings().weight.normal_()
        for layer in model.model.layers:
            for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
                last.weight.mul_((2 * config.num_hidden_layers) ** -0.5)
    longest = max(CONTEXTS) + max(NODES)
    cache = PagedKVCache(
        config.num_hidden_layers,
        batch * -(-longest // PAGE_SIZE),
        PAGE_SIZE,
        config.num_key_value_heads,
        128,
        torch.bfloat16,
        device,
    )
    for layer in range(config.num_hidden_layers):
        cache.k_pages[layer].normal_()
        cache.v_pages[layer].normal_()
    backends = {"launched": attention, "captured": attention, "compiled": attention}
    if attention != "triton":
        backends[DECODING] = "triton"
    targets = {}
    for name, backend in backends.items():
        target = Target(model, num_pages=-(-longest // PAGE_SIZE), attention_backend=backend)
        target.cache = cache  # all read the same entries
        targets[name] = target
    return targets


def make_batch(target: Target, batch: int, nodes: int, context: int) -> Batch:
    """Random trees of `nodes` after contexts in pages all over the cache."""
    torch.manual_seed(batch + nodes)
    tree = random_trees(batch, nodes, VOCAB, target.device)
    # As wide as a graph's, so that the context is split in the same places.
    table = torch.full((batch, target.max_length // PAGE_SIZE), -1, dtype=torch.int32)
    used = -(-(context + nodes) // PAGE_SIZE)
    pages = torch.randperm(target.cache.num_pages)[: batch * used]
    table[:, :used] = pages.view(batch, used)
    lens = torch.full((batch,), context, dtype=torch.int32, device=target.device)
    return tree, lens, table.to(target.device)


def run_row(
    targets: dict[str, Target], batch: int, nodes: int, context: int, seconds: float
) -> dict[str, Any]:
    """Check and time one shape."""
    inputs = make_batch(targets["launched"], batch, nodes, context)
    expected = targets["launched"].logits(*inputs)
    entries: dict[str, Any] = {}
    for name, target in targets.items():
        if name == DECODING and nodes > 1:
            continue
        logits = target.logits(*inputs)
        difference = (logits - expected).norm(dtype=torch.float32)
        error = float(difference / expected.norm(dtype=torch.float32))
        entry = {"identical": torch.equal(logits, expected), "relative_error": error}
        entries[name] = entry
        if not error < MAX_ERROR:
            entry["status"] = f"wrong: relative error {error:.2e}"
            continue
        clock = time_launched if name == "launched" else time_queued
        timing = clock(lambda target=target: target.logits(*inputs), seconds)
        entries[name] = {"status": "ok", **entry, **timing.as_dict()}
    return {"batch": batch, "nodes": nodes, "context": context, "entries": entries}


def floor_ms(results: dict[str, Any]) -> float:
    """All weights but the embedding's read once, at the copy's bandwidth."""
    read = results["weight_bytes"] - results["embedding_bytes"]
    return float(read / results["copy_bytes_per_second"] * 1e3)


def cell(entry: dict[str, Any]) -> str:
    """Milliseconds, or what is wrong."""
    if entry["status"] != "ok":
        return str(entry["status"])
    return f"{entry['median_us'] / 1e3:.2f}"


def medians_us(results: dict[str, Any], name: str) -> dict[tuple[int, int, int], float]:
    """Of one entry, by trees, nodes and context."""
    return {
        (row["batch"], row["nodes"], row["context"]): row["entries"][name]["median_us"]
        for row in results["rows"]
        if name in row["entries"] and row["entries"][name]["status"] == "ok"
    }


def markdown(results: dict[str, Any]) -> str:
    """Both tables, with what was run above."""
    compiled, captured = (medians_us(results, name) for name in ("compiled", "captured"))
    others = medians_us(results, DECODING)
    decoding = {key: min(us, others.get(key, us)) for key, us in compiled.items() if key[1] == 1}
    best = ", by this backend or by `triton`, whichever is faster" if others else ""
    errors = [row["entries"]["compiled"]["relative_error"] for row in results["rows"]]
    same = all(row["entries"]["captured"]["identical"] for row in results["rows"])
    lines = [
        table.heading(results),
        "",
        "Milliseconds a pass, median, its inputs copied in; 8B Llama (32 layers of 4096, 32 query "
        "and 8 key heads of 128, 14,336 inside, V = 128,256), bf16, random weights, pages of 16, "
        f"attention by `{results['attention']}`. Decoding is a pass of one token a request over "
        f"the same context, made in the same way{best}. Compiled: layers fused by torch.compile "
        "before the capture. Captured: transformers' own kernels, one by one, in a graph. "
        "Launched: the same from Python. Captured logits were "
        f"{'the same bits' if same else 'not always the same bits'} as launched ones, compiled "
        f"ones within {max(errors):.1e} of them (relative, all logits). All weights but the "
        f"embedding's, read once at the copy's bandwidth, take {floor_ms(results):.2f} ms.",
        "",
        "| trees × nodes, context | decoding, compiled | trees, compiled | ratio | "
        "decoding, captured | trees, captured | ratio | trees, launched |",
        "|" + "---|" * 8,
    ]
    for row in results["rows"]:
        b, n, context = row["batch"], row["nodes"], row["context"]
        if n == 1:
            continue
        cells = [f"{b} × {n}, {context:,}"]
        for bases, medians in ((decoding, compiled), (captured, captured)):
            base, trees = bases.get((b, 1, context)), medians.get((b, n, context))
            if base is None or trees is None:
                cells += ["–", "wrong", "–"]
            else:
                cells += [f"{base / 1e3:.2f}", f"{trees / 1e3:.2f}", f"{trees / base:.2f}"]
        lines.append(f"| {' | '.join(cells)} | {cell(row['entries']['launched'])} |")
    for name in ("compiled", "captured"):
        lines += split_table(results, name, CONTEXTS[0])
    return "\n".join(lines) + "\n"


def split_table(results: dict[str, Any], name: str, context: int) -> list[str]:
    """Where the time of one entry goes."""
    splits = [s for s in results["splits"] if s["entry"] == name]
    if not splits:
        return []
    lines = [
        "",
        f"Where it goes, {name}, context {context:,}: milliseconds, and kernels in brackets, by "
        "torch's profiler.",
        "",
        "| trees × nodes | " + " | ".join(f"{s['batch']} × {s['nodes']}" for s in splits) + " |",
        "|" + "---|" * (len(splits) + 1),
    ]
    for part in dict.fromkeys(part for s in splits for part in s["parts"]):
        found = [s["parts"].get(part, [0, 0]) for s in splits]
        cells = " | ".join(f"{us / 1e3:.2f} ({count:.0f})" for us, count in found)
        lines.append(f"| {part} | {cells} |")
    medians = medians_us(results, name)
    rest = []
    for s in splits:
        median = medians.get((s["batch"], s["nodes"], context))
        inside = sum(us for us, _ in s["parts"].values())
        rest.append("–" if median is None else f"{(median - inside) / 1e3:.2f}")
    return [*lines, "| between kernels | " + " | ".join(rest) + " |"]


if __name__ == "__main__":
    typer.run(main)
