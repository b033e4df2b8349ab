"""The tables of `bench.faults`, and their place in docs/wide-area.md."""

from pathlib import Path
from typing import Any

DOCUMENT = Path("docs/wide-area.md")
AGAINST = {
    "tuned": "rounds of {passes}, the best on average",
    "hindsight": "the best for each text",
    "tuned_in_hindsight": "(rounds of {passes} against the best for each text)",
}
BEGIN, END = "<!-- faults -->\n", "<!-- end of faults -->\n"


def line(row: dict[str, Any]) -> str:
    recovery = row["recovery_ms"]
    cells = [
        row["schedule"],
        "yes" if row["identical"] else "NO",
        f"{row['elapsed_ms'] / row['co_located_ms']:.3f}×",
        f"{row['longest_ms'] / row['co_located_ms']:.3f}×",
        f"{row['over_plain']:.3f}×" + ("" if row["bounded"] else ", NOT BOUNDED"),
        "–" if recovery is None else f"{recovery:.0f}",
        str(row["remote_tokens"]) if row["commits_after"] else "–",
    ]
    return "| " + " | ".join(cells) + " |"


def write(results: dict[str, Any]) -> None:
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(before + BEGIN + _section(results) + END + after)


def _section(results: dict[str, Any]) -> str:
    r, v, p = results, results["virtual"], results["paces"]
    faults = ", ".join(f"{count} × {kind}" for kind, count in sorted(v["faults"].items()))
    return "\n".join(
        [
            "",
            f"Real processes, medians of {r['runs']} runs: {r['requests']} texts of"
            f" {r['tokens']} tokens at once,"
            f" passes of {p['target_ms']:g} ms (target), {p['home_ms']:g} (home) and"
            f" {p['remote_ms']:g} (remote), a round trip of {r['link']['round_trip_ms']:g} ms;"
            f" commit {r['machine']['commit']},"
            f" {r['machine']['cpus']} cores of {r['machine']['cpu']}; `python -m bench.faults`.",
            "",
            "| what happens | texts are the target's | time of all over co-located | longest |"
            " worst request over plain decoding | recovery at most, ms |"
            " remote tokens accepted after |",
            "|---|---|---|---|---|---|---|",
            *map(line, r["real"]),
            "",
            f"Virtual time: {v['exact']} of {v['schedules']} random schedules gave the target's own"
            f" text ({faults}).",
            "",
            "One text each without restarts of the verifier, something broken every 12 ms; over"
            " co-located speculation:",
            "",
            "| texts of | against | within 5 % and one bounded wait | mean | 95th percentile |"
            " worst |",
            "|---|---|---|---|---|---|",
            *(
                f"| {timed['tokens']} tokens | {against.format(**timed)} |"
                f" {timed[name]['within_bound']} of {timed['texts']} | {timed[name]['mean']:.3f}× |"
                f" {timed[name]['p95']:.3f}× | {timed[name]['worst']:.3f}× |"
                for timed in v["timed"]
                for name, against in AGAINST.items()
            ),
            "",
            "Longest of 20 recoveries in virtual time, from when a link is whole to the first draft"
            " that knows the text as it was then: "
            + "; ".join(f"{name}: {ms:.0f} ms" for name, ms in v["recoveries"].items())
            + ".",
            "",
            "",
        ]
    )
