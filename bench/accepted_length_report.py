"""The figure and the table of docs/, from what `bench.accepted_length` measured."""

import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

RULES = (
    # Name in the results, its name there with one child or draw, colour, line.
    ("match, coupled, pruned", "match, coupled", "#1b6ca8", "-"),
    ("match, coupled", "match, coupled", "#1b6ca8", ":"),
    ("match, target-only", "match, target-only", "#7a7a7a", "-"),
    ("rejection, without replacement", "rejection", "#c8553d", "-"),
    ("traversal, without replacement", "block", "#2a9d5c", "-"),
    ("rejection, with replacement", "rejection", "#c8553d", ":"),
    ("traversal, with replacement", "block", "#2a9d5c", ":"),
)
WIDTHS = (1, 2, 4, 8)
START, END = "<!-- measured -->", "<!-- end -->"


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Texts are independent; contexts of one text are not."""
    return fmean(values), stdev(values) / math.sqrt(len(values))


def column(columns: dict[str, list[float]], rule: str, alone: str, width: int) -> list[float]:
    return columns[f"{alone if width == 1 else rule}|{width}"]


def table(results: dict[str, Any]) -> str:
    lines: list[str] = []
    for temperature, columns in results["mean_accepted_by_text"].items():
        lines += [
            f"| T = {temperature} | " + " | ".join(f"K = {width}" for width in WIDTHS) + " |",
            "|---" * (len(WIDTHS) + 1) + "|",
        ]
        for rule, alone, *_ in RULES:
            cells = [mean_and_error(column(columns, rule, alone, width)) for width in WIDTHS]
            lines.append(f"| {rule} | " + " | ".join(f"{m:.2f} ± {e:.2f}" for m, e in cells) + " |")
        lines.append("")
    lines += [
        "Differences on the same trees and draws, `traversal` (`block` at K = 1) less `rejection`:",
        "",
        "| | " + " | ".join(f"K = {width}" for width in WIDTHS) + " |",
        "|---" * (len(WIDTHS) + 1) + "|",
    ]
    for temperature, columns in results["mean_accepted_by_text"].items():
        for how in ("without", "with"):
            cells = []
            for width in WIDTHS:
                ours = column(columns, f"traversal, {how} replacement", "block", width)
                theirs = column(columns, f"rejection, {how} replacement", "rejection", width)
                m, e = mean_and_error([a - b for a, b in zip(ours, theirs, strict=True)])
                cells.append(f"{m:+.3f} ± {e:.3f} ({m / fmean(theirs):+.1%})")
            lines.append(f"| T = {temperature}, {how} replacement | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    # The same data give the same file.
    matplotlib.rcParams |= {"svg.hashsalt": "wanspec", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot

    by_temperature = results["mean_accepted_by_text"]
    picture, axes = pyplot.subplots(1, len(by_temperature), figsize=(9, 3.8), sharey=True)
    for axis, (temperature, columns) in zip(axes, by_temperature.items(), strict=True):
        for rule, alone, colour, line in RULES:
            cells = [mean_and_error(column(columns, rule, alone, width)) for width in WIDTHS]
            axis.errorbar(
                range(len(WIDTHS)),
                [m for m, _ in cells],
                yerr=[e for _, e in cells],
                label=rule,
                color=colour,
                linestyle=line,
                marker="o",
                markersize=3,
                linewidth=1.3,
                elinewidth=0.8,
            )
        axis.set_xticks(range(len(WIDTHS)), [str(width) for width in WIDTHS])
        axis.set_xlabel("children or draws of an expanded node (K)")
        axis.set_title(f"T = {temperature}", fontsize=10)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("accepted drafts a target pass")
    handles, labels = axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="lower center", ncols=3, frameon=False, fontsize=8)
    picture.tight_layout(rect=(0, 0.16, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, metadata={"Date": None})
    pyplot.close(picture)


def method(results: dict[str, Any]) -> str:
    machine, check = results["machine"], results["check"]
    return (
        f"Seed {results['seed']}: {results['contexts']} contexts a temperature in "
        f"{results['texts']} texts; ± is the standard error over texts. Measured in "
        f"{results['seconds']:.0f} s on {machine['threads']} of {machine['cpus']} cores "
        f"({machine['cpu']}), torch {machine['torch']}, commit {machine['commit']}. "
        f"{check['verifications']} verifications by the rules themselves, coins and all, differ "
        f"from the means by {check['sampled_minus_mean']:+.3f} ± {check['standard_error']:.3f}."
    )


def write(results: dict[str, Any], docs: Path) -> None:
    """The figure, and what stands between the marks of accepted-length.md."""
    figure(results, docs / "figures" / "accepted_length.svg")
    page = docs / "accepted-length.md"
    before, _, rest = page.read_text().partition(START)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{page}: expected {START} and {END}")
    body = f"{START}\n\n{method(results)}\n\n{table(results)}\n\n{END}"
    page.write_text(before + body + after)
