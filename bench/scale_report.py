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


def write(results: dict[str, Any]) -> None:
    figure(results, FIGURE)
    before, rest = DOCUMENT.read_text().split(START)
    _, after = rest.split(END)
    parts = [about(results), slot_table(results), message_table(results), paper(results)]
    parts += [day_table(results)]
    DOCUMENT.write_text(f"{before}{START}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}")


def about(results: dict[str, Any]) -> str:
    machine = results["machine"]
    return (
        f"{machine['cpu']}, Python {machine['python']}, commit {machine['commit']}; "
        f"`python -m bench.scale`, {results['seconds'] / 60:.0f} minutes; trace "
        f"{results['slots']['trace']}, {results['seeds']} texts of {results['tokens']} tokens each."
    )


def home_ms(results: dict[str, Any]) -> float:
    here = results["slots"]["here"]
    return min(here[name]["hot_ms"] for name in here if name.startswith("home"))


def slot_table(results: dict[str, Any]) -> str:
    """Accelerator time of a token where the target runs, and what moving drafts away gains."""
    best = home_ms(results)
    lines = [
        "| drafts | accelerator time a token, ms | latency, ms | home passes a token | capacity |",
        "|---|---|---|---|---|",
    ]
    rows = list(results["slots"]["here"].items())
    rows += [(f"elsewhere, {e['round_trip_ms']:.0f} ms", e) for e in results["slots"]["remote"]]
    for name, entry in rows:
        lines.append(
            f"| {name} | {entry['hot_ms']:.2f} ± {2 * entry['hot_ms_error']:.2f} "
            f"| {entry['latency_ms']:.2f} | {entry['local_passes']:.2f} "
            f"| {best / entry['hot_ms']:.2f}× |"
        )
    return "\n".join(lines)


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


def seats_allowed(results: dict[str, Any]) -> int:
    return sorted({run["seats"] for run in results["runs"]})[1]


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
    allowed, asked = seats_allowed(results), max(run["seats"] for run in results["runs"])
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


def capacity(results: dict[str, Any], seats: int) -> float | None:
    """Load at which the 95th percentile of waits passes what is tolerable, between two measured."""
    runs = sorted((r for r in results["runs"] if r["seats"] == seats), key=lambda r: r["hot_load"])
    for before, after in pairwise(runs):
        low, high = before["wait"][1], after["wait"][1]
        if low <= TOLERABLE < high:
            share = (TOLERABLE - low) / (high - low)
            return float(before["hot_load"] + share * (after["hot_load"] - before["hot_load"]))
    return None


def day_table(results: dict[str, Any]) -> str:
    lines = [
        f"A day of {results['runs'][0]['requests']:,} requests. Load: the hot region's at its "
        "peak, over what its slots carry with drafts made there:",
        "",
        "| requests a drafter | load | wait: 95th, 99th percentile | ms a token, wait included: "
        "50th, 95th, 99th | drafted elsewhere, from | slots held in the busiest hour |",
        "|---|---|---|---|---|---|",
    ]
    loads = (0.9, 1.0, 1.1, 1.2, 1.3)
    for run in results["runs"]:
        if run["hot_load"] not in loads:
            continue
        share = (
            "–" if not run["seats"] else f"{run['remote_share']:.0%}, {run['remote_rtt_ms']:.0f} ms"
        )
        lines.append(
            f"| {run['seats'] or 'none'} | {run['hot_load']:.1f} | "
            f"{run['wait'][1]:.2f}, {run['wait'][2]:.2f} | "
            + ", ".join(f"{ms:.1f}" for ms in run["token_ms"])
            + f" | {share} | {run['busiest_slots']:.0%} |"
        )
    found = {
        seats: capacity(results, seats) for seats in sorted({r["seats"] for r in results["runs"]})
    }
    base = found[0]
    said = [
        f"{seats or 'no'} requests a drafter: {'past the sweep' if load is None else f'{load:.2f}'}"
        + (f" ({load / base:.2f}×)" if seats and load and base else "")
        for seats, load in found.items()
    ]
    lines += [
        "",
        f"The load at which one request in twenty waits {TOLERABLE:.0%} of a mean request's time: "
        + "; ".join(said)
        + ".",
    ]
    return "\n".join(lines)


def figure(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6))
    remote = results["slots"]["remote"]
    x = [entry["round_trip_ms"] for entry in remote]
    y = [entry["hot_ms"] for entry in remote]
    error = [2 * entry["hot_ms_error"] for entry in remote]
    left.errorbar(x, y, error, color="#1b6ca8", marker=".", label="drafts elsewhere")
    left.axhline(home_ms(results), color="black", linewidth=0.8, label="drafts at home")
    left.set(xlabel="round trip, ms", ylabel="accelerator time a token, ms")
    colours = ["black", "#c8553d", "#1b6ca8"]
    for colour, seats in zip(colours, sorted({r["seats"] for r in results["runs"]}), strict=True):
        runs = [run for run in results["runs"] if run["seats"] == seats]
        label = f"{seats} requests a drafter" if seats else "drafts at home"
        middle.plot(
            [run["hot_load"] for run in runs],
            [max(run["wait"][1], 1e-3) for run in runs],
            color=colour,
            marker=".",
            label=label,
        )
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
