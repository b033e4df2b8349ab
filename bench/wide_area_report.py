"""The figure and the tables of docs/wide-area.md, from what `bench.wide_area` measured."""

from pathlib import Path
from typing import Any

DOCUMENT = Path("docs/wide-area.md")
FIGURE = Path("docs/figures/wide-area.png")
START, END = "<!-- measured -->", "<!-- end -->"
COLOUR = "#1b6ca8"
# What is asked: trace, round trip, latency and local passes at most, against the best tree.
ASKED = (
    ("synthetic:0.8", 10.0, 0.90, 0.05),
    ("synthetic:0.9", 10.0, 0.90, 0.05),
    ("bundled", 10.0, 0.90, 0.05),
    ("synthetic:0.8", 30.0, 0.95, 0.35),
    ("synthetic:0.9", 30.0, 0.90, 0.10),
    ("synthetic:0.9", 50.0, 1.00, 0.45),
    ("synthetic:0.8", 150.0, 1.02, 1.00),
    ("synthetic:0.9", 150.0, 1.02, 1.00),
    ("bundled", 150.0, 1.02, 1.00),
)
# Of the paper, against a co-located chain: passes at most, at no more latency.
CLAIMS = ((30.0, 0.50), (100.0, 1.00))


def write(results: dict[str, Any]) -> None:
    figure(results, FIGURE)
    text = DOCUMENT.read_text()
    before, rest = text.split(START)
    _, after = rest.split(END)
    tables = f"{asked_table(results)}\n\n{claims_table(results)}\n\n{stall_table(results)}"
    DOCUMENT.write_text(f"{before}{START}\n\n{about(results)}\n\n{tables}\n\n{END}{after}")


def about(results: dict[str, Any]) -> str:
    machine = results["machine"]
    lines = [
        f"Virtual time; {results['texts']} texts of {results['tokens']} tokens, commit "
        f"{machine['commit']}; `python -m bench.wide_area`, {results['seconds'] / 60:.0f} minutes. "
        f"The best co-located speculation, tuned on the same texts:",
        "",
        "| trace | tree: passes a round, ms a token, passes a token | chain |",
        "|---|---|---|",
    ]
    for trace, both in results["baselines"].items():
        cells = [
            f"{b['passes']}, {b['measures']['latency_ms']:.2f}, {b['measures']['local_passes']:.2f}"
            for b in (both["tree"], both["chain"])
        ]
        lines.append(f"| {trace} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def ratios(results: dict[str, Any], run: dict[str, Any], against: str) -> tuple[float, float]:
    """Latency and local passes over those of the best "tree" or "chain"."""
    best = results["baselines"][run["trace"]][against]["measures"]
    mine = run["measures"]
    return (
        mine["latency_ms"] / best["latency_ms"],
        mine["local_passes"] / best["local_passes"],
    )


def find(results: dict[str, Any], trace: str, round_trip_ms: float) -> dict[str, Any]:
    for run in results["runs"]:
        link = run["link"]
        same = (run["trace"], link["round_trip_ms"]) == (trace, round_trip_ms)
        if same and not link["stall_ms"] and run["tokens"] == results["tokens"]:
            return dict(run)
    raise LookupError(f"expected a run on {trace} at {round_trip_ms} ms, found none")


def asked_table(results: dict[str, Any]) -> str:
    lines = [
        "| trace | round trip | asked: latency, passes | ours | the target alone | holds |",
        "|---|---|---|---|---|---|",
    ]
    for trace, round_trip_ms, latency, passes in ASKED:
        ours = ratios(results, find(results, trace, round_trip_ms), "tree")
        best = results["baselines"][trace]
        alone = best["alone"]["measures"]["latency_ms"] / best["tree"]["measures"]["latency_ms"]
        holds = "yes" if ours[0] <= latency and ours[1] <= passes else "no"
        lines.append(
            f"| {trace} | {round_trip_ms:.0f} ms | {latency:.2f}×, {passes:.0%} | "
            f"{ours[0]:.3f}×, {ours[1]:.0%} | {alone:.2f}× | {holds} |"
        )
    return "\n".join(lines)


def claims_table(results: dict[str, Any]) -> str:
    lines = [
        "Against the paper's own baseline, the best co-located *chain*:",
        "",
        "| trace | round trip | the paper's claim: passes | ours: latency, passes |",
        "|---|---|---|---|",
    ]
    for trace in results["baselines"]:
        for round_trip_ms, passes in CLAIMS:
            found = ratios(results, find(results, trace, round_trip_ms), "chain")
            lines.append(
                f"| {trace} | {round_trip_ms:.0f} ms | under {passes:.0%} | {found[0]:.2f}×, "
                f"{found[1]:.0%} |"
            )
    return "\n".join(lines)


def stall_table(results: dict[str, Any]) -> str:
    """A stalled link costs what the same link costs while it flows, plus the stall's share."""
    lines = [
        "Stalls of 2 s every 20 s, against the same link without:",
        "",
        "| trace | without, ms a token | with | ratio |",
        "|---|---|---|---|",
    ]
    for run in results["runs"]:
        if not run["link"]["stall_ms"]:
            continue
        smooth = next(
            other
            for other in results["runs"]
            if other["trace"] == run["trace"]
            and other["tokens"] == run["tokens"]
            and other["link"]["round_trip_ms"] == run["link"]["round_trip_ms"]
            and not other["link"]["stall_ms"]
        )
        without, stalled = (r["measures"]["latency_ms"] for r in (smooth, run))
        lines.append(
            f"| {run['trace']} | {without:.2f} | {stalled:.2f} | {stalled / without:.3f}× |"
        )
    return "\n".join(lines)


def figure(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    traces = list(results["baselines"])
    fig, axes = plt.subplots(2, len(traces), figsize=(11, 5.6), sharex=True, squeeze=False)
    for column, trace in enumerate(traces):
        runs = [
            run
            for run in results["runs"]
            if run["trace"] == trace
            and run["tokens"] == results["tokens"]
            and not run["link"]["stall_ms"]
        ]
        runs.sort(key=lambda run: run["link"]["round_trip_ms"])
        x = [run["link"]["round_trip_ms"] for run in runs]
        for row in range(2):
            y = [ratios(results, run, "tree")[row] for run in runs]
            axes[row][column].plot(x, y, color=COLOUR, label="ours", marker=".")
        best = results["baselines"][trace]
        chain, tree = (best[kind]["measures"] for kind in ("chain", "tree"))
        over = [chain[key] / tree[key] for key in ("latency_ms", "local_passes")]
        for row in range(2):
            axes[row][column].axhline(1.0, color="black", linewidth=0.8)
            axes[row][column].grid(alpha=0.25)
        axes[0][column].axhline(over[0], color="black", linewidth=0.8, linestyle="--")
        for round_trip_ms, passes in CLAIMS:
            axes[1][column].plot(round_trip_ms, passes * over[1], "kv", markersize=6)
        axes[0][column].set_title(trace)
        axes[1][column].set_xlabel("round trip, ms")
    axes[0][0].set_ylabel("latency, × best co-located tree")
    axes[1][0].set_ylabel("local draft passes, ×")
    axes[0][-1].legend(fontsize=8)
    fig.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(fig)
