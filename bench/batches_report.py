"""The tables of docs/batches.md, from what `bench.batches` measured."""

from pathlib import Path
from typing import Any

DOCUMENT = Path("docs/batches.md")
START, END = "<!-- measured -->", "<!-- end -->"
ASKED = {1: 3.0, 8: 2.5, 32: 1.8, 64: 1.4}  # times plain decoding
ASKED_OF_ROUNDS = {8: 1.15, 32: 1.15}  # times the best co-located rounds
ASKED_OF_USELESS = 0.98  # times plain decoding


def speed(entry: dict[str, Any], name: str, against: str = "alone") -> float:
    """Tokens a second over those of another, of the same batch."""
    of, over = _measures(entry[name]), _measures(entry[against])
    return float(of["tokens_per_s"] / over["tokens_per_s"])


def line(requests: int, entry: dict[str, Any]) -> str:
    cells = ", ".join(
        f"{name} {speed(entry, name):.2f}" for name in ("rounds", "home", "remote", "both")
    )
    return f"{requests} requests: {cells}"


def write(results: dict[str, Any]) -> None:
    before, rest = DOCUMENT.read_text().split(START)
    _, after = rest.split(END)
    tables = "\n\n".join([about(results), speeds(results), rows(results), useless(results)])
    DOCUMENT.write_text(f"{before}{START}\n\n{tables}\n\n{END}{after}")


def about(results: dict[str, Any]) -> str:
    parts = [
        f"{name} at commit {results['measured'][part]['commit']} "
        f"({results['measured'][part]['seconds'] / 60:.0f} minutes)"
        for part, name in (("loads", "paces"), ("useless", "useless drafters"))
    ]
    return f"Virtual time, `python -m bench.batches`: {' and '.join(parts)}."


def speeds(results: dict[str, Any]) -> str:
    lines = [
        "Tokens a second over those of plain decoding of the same batch:",
        "",
        "| requests | plain, tokens/s | best co-located rounds | scheduler: home only |"
        " remotes only | home and remotes, asked | over the best rounds, asked |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, entry in results["loads"].items():
        requests, best = int(number), entry["rounds"]
        plain = entry["alone"]["tokens_per_s"]
        home, remote, both = (speed(entry, name) for name in ("home", "remote", "both"))
        over = both / speed(entry, "rounds")
        asked = f", {ASKED[requests]:.1f}" if requests in ASKED else ""
        asked_of = f", {ASKED_OF_ROUNDS[requests]:.2f}" if requests in ASKED_OF_ROUNDS else ""
        lines.append(
            f"| {requests} | {plain:.0f} | {speed(entry, 'rounds'):.2f} ({best['passes']} passes, "
            f"{best['rows']} rows) | {home:.2f} | {remote:.2f} | "
            f"{both:.2f}{asked} | {over:.2f}{asked_of} |"
        )
    return "\n".join(lines)


def rows(results: dict[str, Any]) -> str:
    lines = [
        "What the scheduler chose, with home and remotes (remotes only in brackets). Latency is "
        "over the whole text, its first and slowest passes included:",
        "",
        "| requests | rows of a request | rows of a pass | tokens of a request a pass |"
        " draft passes at home a round | ms a token, whole text | times plain, whole text |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, entry in results["loads"].items():
        both, remote = entry["both"], entry["remote"]
        home = both["local_passes"] * both["tokens_per_pass"]
        lines.append(
            f"| {number} | {both['rows_per_pass']:.1f} ({remote['rows_per_pass']:.1f}) "
            f"| {int(number) * both['rows_per_pass']:.0f} "
            f"({int(number) * remote['rows_per_pass']:.0f}) "
            f"| {both['tokens_per_pass']:.2f} ({remote['tokens_per_pass']:.2f}) | {home:.2f} "
            f"| {both['latency_ms']:.2f} ({remote['latency_ms']:.2f}) "
            f"| {entry['alone']['latency_ms'] / both['latency_ms']:.2f} "
            f"({entry['alone']['latency_ms'] / remote['latency_ms']:.2f}) |"
        )
    return "\n".join(lines)


def useless(results: dict[str, Any]) -> str:
    lines = [
        "With useless drafters and none at home, the whole text beside plain decoding of it "
        f"(asked: {ASKED_OF_USELESS}):",
        "",
        "| requests | the worst | silent | always wrong | mean of all |",
        "|---|---|---|---|---|",
    ]
    for number, ratios in results["useless"].items():
        worst = min(ratios, key=lambda name: ratios[name])
        lines.append(
            f"| {number} | {worst.replace('_', ' ')}, {ratios[worst]:.3f} "
            f"| {ratios['silent']:.3f} | {ratios['random']:.3f} "
            f"| {sum(ratios.values()) / len(ratios):.3f} |"
        )
    return "\n".join(lines)


def _measures(entry: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = entry.get("measures", entry)
    return found
