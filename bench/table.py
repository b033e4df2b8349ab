"""Results as JSON and as Markdown: the tables of README and docs are drawn from the file."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bench import machine
from bench.peer_adapters import PEERS
from bench.timing import copy_bandwidth

FORMAT = 1
Out = Annotated[Path | None, typer.Option(help="Where the JSON goes.")]
TableFile = Annotated[Path | None, typer.Option("--table", help="Where the Markdown goes.")]
Commit = Annotated[str, typer.Option(help="What is measured, where git cannot say.")]
Draw = Annotated[Path | None, typer.Option(help="Only draw the table of these results.")]
OURS = {"cuda": "ours, CUDA", "triton": "ours, Triton", "reference": "reference"}
LABELS = OURS | {peer.name: peer.label for peer in PEERS}
DOES = {peer.name: peer.does for peer in PEERS}
MODES = {
    "greedy": "greedy",
    "temperature": "temperature only",
    "top_k_top_p": "temperature, top-k 50, then top-p 0.9",
    "top_p": "temperature, top-p 0.9",
}
SERIES = {
    "shapes": "",
    "depth": ", ten drafts accepted",
    "nodes": ", growing trees of three accepted drafts",
}


def begin(module: str, commit: str, device: torch.device) -> dict[str, Any]:
    """Results without rows: when, by which command, where and at which commit."""
    return {
        "format": FORMAT,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", module, *sys.argv[1:]],
        "machine": machine.describe(commit),
        "copy_bytes_per_second": copy_bandwidth(device),
    }


def save(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def load(path: Path) -> dict[str, Any]:
    """Raises ValueError for a file of another format."""
    results: dict[str, Any] = json.loads(path.read_text())
    if results.get("format") != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {results.get('format')}")
    return results


def heading(results: dict[str, Any]) -> str:
    """One paragraph: where, with what, at which commit."""
    facts = results["machine"]
    bandwidth = results["copy_bytes_per_second"] / 1e12
    if "gpu" in facts:
        where = (
            f"One {facts['gpu']} (driver {facts['driver']}, CUDA {facts['cuda']}, "
            f"L2 {facts['l2_mib']:.0f} MiB, copy {bandwidth:.2f} TB/s read and written)"
        )
    else:
        where = f"{facts['cpu']} ({facts['cpus']} cores, copy {bandwidth:.3f} TB/s)"
    versions = [
        f"{name} {facts[name]}"
        for name in ("torch", "triton", "flashinfer-python", "vllm", "sgl-kernel")
        if facts.get(name)
    ]
    return f"{where}, {', '.join(versions)}, commit {facts['commit']}, {results['started'][:10]}."


def floor_us(row: dict[str, Any], results: dict[str, Any]) -> float:
    """Reading the rows on the path at the copy's bandwidth."""
    return float(row["path_bytes"] / results["copy_bytes_per_second"] * 1e6)


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    parts = [f"{row['id']:36} "]
    for name, entry in row["entries"].items():
        parts.append(f"{name} {cell(entry)}")
    return " | ".join(parts)


def failures(results: dict[str, Any]) -> list[str]:
    """Everything that gave a wrong output or raised."""
    return [
        f"{row['id']}: {name}: {entry['status']}"
        for row in results["rows"]
        for name, entry in row["entries"].items()
        if entry["status"] != "ok"
    ]


def markdown(results: dict[str, Any]) -> str:
    """All tables, with what was run above and what the columns do below."""
    rows = results["rows"]
    text = [heading(results), ""]
    text += [
        "Microseconds a call, median: graph replays over enough sets of inputs that the path's "
        "rows come from memory (values in italics: eager calls). Every output was checked first; "
        "floor: the path's rows at the copy's bandwidth.",
        "",
    ]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["series"], row["rule"], row["mode"]), []).append(row)
    used: dict[str, None] = {}
    for (series, rule, mode), group in groups.items():
        vocab = group[0]["vocab"]
        text += [f"**`{rule}`, {MODES[mode]}**{SERIES[series]}, V = {vocab:,}", ""]
        names = [name for name in LABELS if any(name in row["entries"] for row in group)]
        used |= dict.fromkeys(names)
        titles = ["trees × nodes", "accepted", *(LABELS[n] for n in names if n in OURS), "floor"]
        titles += [LABELS[n] for n in names if n not in OURS]
        text += ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
        for row in group:
            cells = [f"{row['batch']} × {row['num_nodes']}", str(row["depth"])]
            cells += [cell(row["entries"].get(n)) for n in names if n in OURS]
            cells += [microseconds(floor_us(row, results))]
            cells += [cell(row["entries"].get(n)) for n in names if n not in OURS]
            text.append("| " + " | ".join(cells) + " |")
        text.append("")
    text += [f"- {LABELS[name]}: {DOES[name]}." for name in used if name in DOES]
    text += _memory(rows)
    reasons = [f"{LABELS.get(n, n)} ({why})" for n, why in results["skipped"].items()]
    if reasons:
        text += [f"- Not timed: {'; '.join(reasons)}."]
    return "\n".join(text).rstrip() + "\n"


def _memory(rows: list[dict[str, Any]]) -> list[str]:
    """What one call took beyond its inputs, at most."""
    most: dict[str, int] = {}
    for row in rows:
        for name, entry in row["entries"].items():
            extra = entry.get("extra_bytes")
            if extra is not None:
                most[name] = max(most.get(name, 0), extra)
    parts = [f"{LABELS[n]} {most[n] / 2**20:,.1f}" for n in LABELS if n in most]
    return [f"- Memory beyond the inputs, MiB at most: {', '.join(parts)}."] if parts else []


def cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "–"
    if entry["status"] != "ok":
        return entry["status"].partition(":")[0]
    value = microseconds(entry["median_us"])
    return value if entry["method"] == "graph" else f"*{value}*"


def brief(error: BaseException) -> str:
    """The kind of an error and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def write(path: Path | None, text: str) -> None:
    """To a file, or to the terminal if there is none."""
    if path is None:
        typer.echo(text)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def microseconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"
