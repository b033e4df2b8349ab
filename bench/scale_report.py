"""The figure and the tables of docs/scale.md, from what `bench.scale` measured."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.scale_world import HOT, REGIONS, SWING, round_trip_ms

DOCUMENT = Path("docs/scale.md")
FIGURE = Path("docs/figures/scale.png")
START, END = "<!-- measured -->", "<!-- end -->"
TOLERABLE = 0.1  # of a mean request's time, waited by one in twenty: beyond, the region is full
SLOTS_A_MACHINE = 16  # of 16 rows: 256 in a pass
NEAR_MS = 60.0
SHOWN = (1.0, 1.1, 1.2)  # loads in the table
COLOURS = ("black", "#c8553d", "#1b6ca8", "#2a9d5c", "#8e5ea2")


def write(results: dict[str, Any]) -> None:
    figure(results, FIGURE)
    before, rest = DOCUMENT.read_text().split(START)
    _, after = rest.split(END)
    parts = [about(results), slot_table(results), batch_line(results), message_table(results)]
    parts += [paper(results), day_table(results)]
    DOCUMENT.write_text(f"{before}{START}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}")


def about(results: dict[str, Any]) -> str:
    machine = results["machine"]
    return (
        f"{machine['cpu']}, Python {machine['python']}, commit {machine['commit']}; "
        f"`python -m bench.scale`, {results['seconds'] / 60:.0f} minutes; trace "
        f"{results['slots']['trace']}, {results['seeds']} texts of {results['tokens']} tokens each."
    )


def slot_table(results: dict[str, Any]) -> str:
    """Accelerator time of a token where the target runs, and what moving drafts away gains."""
    lines = [
        "| drafts | accelerator time a token, ms | latency, ms | home passes a token | capacity |",
        "|---|---|---|---|---|",
    ]
    rows = list(results["slots"]["here"].items())
    rows += [
        (f"elsewhere, {e['width']} nodes a pass, {e['round_trip_ms']:.0f} ms", e)
        for e in results["slots"]["remote"]
    ]
    for name, entry in rows:
        lines.append(
            f"| {name} | {entry['hot_ms']:.2f} | {entry['latency_ms']:.2f} "
            f"| {entry['local_passes']:.2f} "
            f"| {entry['capacity']:.2f}× ± {2 * entry['capacity_error']:.2f} |"
        )
    return "\n".join(lines)


def batch_line(results: dict[str, Any]) -> str:
    def latencies(batch: dict[str, Any]) -> str:
        return ", ".join(f"{run['latency_ms']:.2f} with {run['requests']}" for run in batch["runs"])

    batches = results["batches"]
    return (
        "Requests at one target, which waits 12 ms for those that are not ready; ms a token by how"
        f" many there are, drafted for at {batches[0]['round_trip_ms']:.0f} ms: "
        + "; ".join(f"{batch['width']} nodes a pass {latencies(batch)}" for batch in batches)
        + "."
    )


def message_table(results: dict[str, Any]) -> str:
    lines = [
        "| nodes a pass | drafts a second | nodes each | Mbit/s | decode, merge: µs each "
        "| select: µs a target pass | of one core | requests a core |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for m in results["messages"]:
        lines.append(
            f"| {m['width']} | {m['drafts_per_s']:.0f} | {m['nodes_a_draft']:.0f} "
            f"| {m['mbit']:.2f} | {m['decode_us']:.0f}, {m['merge_us']:.0f} | {m['select_us']:.0f} "
            f"| {m['core_share']:.1%} | {int(1 / m['core_share'])} |"
        )
    return "\n".join(lines)


def paper(results: dict[str, Any]) -> str:
    """What the hot region needs at its peak, and what one unit of each carries."""
    settings, limits = results["settings"], results["limits"]
    peak = settings["in_flight"] * REGIONS[HOT].weight * (1 + SWING)
    sent = next(m for m in results["messages"] if m["width"] == results["slots"]["width"])
    day = peak_day()
    near = [r for r in REGIONS if round_trip_ms(REGIONS[HOT], r) <= NEAR_MS]
    each = settings["drafters"] // len(REGIONS)
    lent = sum(int(each * r.idle(day)) for r in REGIONS)
    lent_near = sum(int(each * r.idle(day)) for r in near)
    allowed, asked = results["seats_allowed"], results["seats_asked"]
    session = limits["sessions"] * allowed
    core = int(1 / sent["core_share"])
    rows = [
        (
            "target",
            f"{SLOTS_A_MACHINE} requests a machine",
            f"{peak / SLOTS_A_MACHINE:,.0f} machines",
        ),
        (
            f"drafters, {limits['messages_per_s']:.0f} messages a second and key",
            f"{allowed} requests a drafter",
            f"{peak / allowed:,.0f} drafters; lent then {lent}, {lent_near} of them within "
            f"{NEAR_MS:.0f} ms",
        ),
        (f"drafters, {asked} requests each", f"{asked} requests", f"{peak / asked:,.0f} drafters"),
        (
            f"verifier processes, {limits['sessions']} sessions",
            f"{session} requests a process",
            f"{peak / session:,.0f} processes",
        ),
        (
            "verifier processes, one core",
            f"{core} requests at most",
            f"{peak / core:,.0f} processes, {core * sent['drafts_per_s']:,.0f} messages a second "
            "each",
        ),
        (
            "network into the region",
            f"{sent['mbit']:.2f} Mbit/s a request",
            f"{peak * sent['mbit'] / 1000:.1f} Gbit/s",
        ),
    ]
    lines = [
        f"At the hot region's peak {peak:,.0f} requests are in flight:",
        "",
        "| what | one carries | needed |",
        "|---|---|---|",
    ]
    return "\n".join(lines + [f"| {a} | {b} | {c} |" for a, b, c in rows])


def peak_day() -> float:
    """When the hot region's load is highest, as a share of a day in UTC."""
    days = np.linspace(0, 1, 289)
    return float(max(days, key=REGIONS[HOT].load))


def variants(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Runs by variant, in the order of their loads."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(results["runs"], key=lambda r: r["hot_load"]):
        found.setdefault(run["variant"], []).append(run)
    order = list(dict.fromkeys(run["variant"] for run in results["runs"]))
    return {name: found[name] for name in order}


def capacity(runs: list[dict[str, Any]]) -> float | None:
    """Load at which the 95th percentile of waits passes what is tolerable, between two measured."""
    for before, after in pairwise(runs):
        low, high = before["wait"][1], after["wait"][1]
        if low <= TOLERABLE < high:
            share = (TOLERABLE - low) / (high - low)
            return float(before["hot_load"] + share * (after["hot_load"] - before["hot_load"]))
    return None


def day_table(results: dict[str, Any]) -> str:
    by_variant = variants(results)
    least = next(iter(by_variant.values()))[0]["requests"]
    lines = [
        f"A day of {least:,} requests and more. Load is the hot region's at its peak, over what "
        "its slots carry with drafts made there; waits are in mean requests' times:",
        "",
        "| drafters | load | wait: 95th, 99th percentile | ms a token, wait included: 50th, 95th, "
        "99th | drafted elsewhere, from | slots held in the busiest hour |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in by_variant.items():
        for run in (r for r in runs if r["hot_load"] in SHOWN):
            from_ms = run["remote_rtt_ms"]
            share = "–" if from_ms is None else f"{run['remote_share']:.0%}, {from_ms:.0f} ms"
            token_ms = ", ".join(f"{ms:.1f}" for ms in run["token_ms"])
            lines.append(
                f"| {name} | {run['hot_load']:.1f} | {run['wait'][1]:.2f}, {run['wait'][2]:.2f} "
                f"| {token_ms} | {share} | {run['busiest_slots']:.0%} |"
            )
    lines += [
        "",
        f"The load at which one request in twenty waits {TOLERABLE:.0%} of a mean request's time:",
        "",
        "| drafters | load carried | capacity gained |",
        "|---|---|---|",
    ]
    found = {name: capacity(runs) for name, runs in by_variant.items()}
    base = next(iter(found.values()))
    for name, load in found.items():
        cells = "past the sweep | " if load is None else f"{load:.3f} | "
        gained = f"{load / base - 1:+.1%}" if load and base else "–"
        lines.append(f"| {name} | {cells}{gained} |")
    return "\n".join(lines)


def figure(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6))
    for colour, width in zip(COLOURS[2:], (16, 64), strict=False):
        remote = [e for e in results["slots"]["remote"] if e["width"] == width]
        x = [entry["round_trip_ms"] for entry in remote]
        y = [entry["capacity"] for entry in remote]
        error = [2 * entry["capacity_error"] for entry in remote]
        left.errorbar(x, y, error, color=colour, marker=".", label=f"{width} nodes a pass")
    left.axhline(1.0, color="black", linewidth=0.8, label="drafts at home")
    left.set(xlabel="round trip, ms", ylabel="capacity of the target's accelerators, ×")
    for colour, (name, runs) in zip(COLOURS, variants(results).items(), strict=True):
        loads = [run["hot_load"] for run in runs]
        waits = [max(run["wait"][1], 1e-3) for run in runs]
        middle.plot(loads, waits, color=colour, marker=".", label=name)
    middle.axhline(TOLERABLE, color="grey", linewidth=0.8, linestyle=":")
    middle.set(xlabel="load at the hot region's peak", ylabel="wait, 95th percentile, × a request")
    middle.set_yscale("log")
    days = np.linspace(0, 1, 97)
    each = results["settings"]["drafters"] // len(REGIONS)
    near = [r for r in REGIONS if round_trip_ms(REGIONS[HOT], r) <= NEAR_MS]
    right.plot(24 * days, [sum(each * r.idle(d) for r in REGIONS) for d in days], label="lent")
    right.plot(
        24 * days,
        [sum(each * r.idle(d) for r in near) for d in days],
        label=f"within {NEAR_MS:.0f} ms",
    )
    right.plot(
        24 * days, [300 * REGIONS[HOT].load(d) for d in days], "k--", label="hot region's load"
    )
    right.set(xlabel="hour, UTC", ylabel="drafters")
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    fig.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(fig)
