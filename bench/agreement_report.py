"""The table of `bench.agreement`, and its place in docs/wide-area.md."""

from pathlib import Path
from statistics import fmean
from typing import Any

DOCUMENT = Path("docs/wide-area.md")
BEGIN, END = "<!-- agreement -->\n", "<!-- end of agreement -->\n"


def line(row: dict[str, Any]) -> str:
    real, simulated = row["real"], row["simulated"]

    def of(runs: list[dict[str, Any]], name: str) -> float:
        return fmean(run[name] for run in runs)

    latency, passes = of(real, "latency_ms"), of(real, "local_passes")
    theirs, its_passes = of(simulated, "latency_ms"), of(simulated, "local_passes")
    ratio = f"{passes / its_passes:.2f}×" if its_passes else "–"
    cells = [
        row["case"],
        f"{latency:.2f}",
        f"{theirs:.2f}",
        f"{latency / theirs:.3f}×",
        f"{passes:.3f}",
        f"{its_passes:.3f}",
        ratio,
        f"{of(real, 'wire_bytes'):.0f}, {of(simulated, 'wire_bytes'):.0f}",
        "yes" if all(run["exact"] for run in real) else "NO",
    ]
    return "| " + " | ".join(cells) + " |"


def write(results: dict[str, Any]) -> None:
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(before + BEGIN + _section(results) + END + after)


def _section(results: dict[str, Any]) -> str:
    r = results
    return "\n".join(
        [
            "",
            f"{r['texts']} texts of {r['tokens']} tokens a link, all times {r['scale']:g} times as"
            f" long and divided again; the simulator's are means of {r['simulated_seeds']} seeds."
            f" Commit {r['machine']['commit']}, {r['machine']['cpus']} cores of"
            f" {r['machine']['cpu']};"
            " `python -m bench.agreement`.",
            "",
            "| link | ms a token: real | simulated | ratio | home passes a token: real | simulated"
            " | ratio | wire bytes a token | text is the target's |",
            "|---|---|---|---|---|---|---|---|---|",
            *map(line, r["rows"]),
            "",
            "",
        ]
    )
