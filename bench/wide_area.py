"""Latency and local passes over the round trip, in the simulator.

python -m bench.wide_area          measure: bench/results/wide_area.json
python -m bench.wide_area --draw   figure and tables from that file, for docs/
"""

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import wide_area_report
from bench.machine import describe
from wanspec_kernels.control.tuning import TUNING
from wanspec_kernels.simulation.link import LinkProfile
from wanspec_kernels.simulation.measures import best_chain, best_tree, mean, measure, plain
from wanspec_kernels.simulation.scenario import DrafterProfile, Scenario
from wanspec_kernels.simulation.traces import load

RESULTS = Path("bench/results/wide_area.json")
TRACES = ("bundled", "synthetic:0.8", "synthetic:0.9")
ROUND_TRIPS_MS = (10.0, 30.0, 50.0, 100.0, 150.0)
STALLS = LinkProfile(10.0, stall_ms=2000.0, stall_every_ms=20_000.0)


def scenario(trace: str, tokens: int, seed: int) -> Scenario:
    """Target pass 30 ms, home 3 ms, remote 4 ms, 64 rows: the defaults."""
    return Scenario(load(trace), tokens=tokens, seed=seed)


def baseline(job: tuple[str, str, int, int]) -> dict[str, Any]:
    trace, kind, tokens, texts = job
    best = best_tree if kind == "tree" else best_chain
    return asdict(best(*(scenario(trace, tokens, seed) for seed in range(texts))))


def alone(job: tuple[str, int, int]) -> dict[str, Any]:
    trace, tokens, texts = job
    return asdict(mean([plain(scenario(trace, tokens, seed)) for seed in range(texts)]))


def run(job: tuple[str, LinkProfile, int, int]) -> dict[str, Any]:
    """Means over so many texts, with a drafter at home and one over the link."""
    trace, link, tokens, texts = job
    runs = [
        measure(replace(scenario(trace, tokens, seed), drafters=(DrafterProfile(link),)))
        for seed in range(texts)
    ]
    return {
        "trace": trace,
        "link": asdict(link),
        "tokens": tokens,
        "measures": asdict(mean(runs)),
    }


def study(tokens: int, texts: int, workers: int) -> dict[str, Any]:
    started = time.perf_counter()
    links = [*map(LinkProfile, ROUND_TRIPS_MS)]
    jobs = [(trace, link, tokens, texts) for trace in TRACES for link in links]
    jobs += [
        (trace, link, 4 * tokens, texts)
        for link in (STALLS, LinkProfile(STALLS.round_trip_ms))
        for trace in TRACES
    ]
    with ProcessPoolExecutor(workers) as pool:
        kinds = [(trace, kind) for trace in TRACES for kind in ("tree", "chain")]
        tuned = [pool.submit(baseline, (trace, kind, tokens, texts)) for trace, kind in kinds]
        targets = [pool.submit(alone, (trace, tokens, texts)) for trace in TRACES]
        runs = []
        for number, found in enumerate(pool.map(run, jobs), 1):
            runs.append(found)
            typer.echo(f"{number} of {len(jobs)}: {found['trace']}")
        best: dict[str, dict[str, Any]] = {trace: {} for trace in TRACES}
        for (trace, kind), future in zip(kinds, tuned, strict=True):
            best[trace][kind] = future.result()
        for trace, future in zip(TRACES, targets, strict=True):
            best[trace]["alone"] = {"measures": future.result()}
    return {
        "machine": describe(),
        "seconds": round(time.perf_counter() - started, 1),
        "tokens": tokens,
        "texts": texts,
        "tuning": asdict(TUNING),
        "baselines": best,
        "runs": runs,
    }


def main(
    draw: Annotated[bool, typer.Option("--draw", help="From the stored data only.")] = False,
    tokens: int = 1000,
    texts: int = 4,
    workers: int = os.cpu_count() or 1,
) -> None:
    """Measure, or draw what was measured."""
    if not draw:
        results = study(tokens, texts, workers)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    wide_area_report.write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    typer.run(main)
