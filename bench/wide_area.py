"""Latency and local passes over the round trip, by policy, in the simulator.

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
from wanspec_kernels.control.policies import EntropyGate, ExpectedGain, NeverLocal
from wanspec_kernels.simulation.link import LinkProfile
from wanspec_kernels.simulation.measures import best_chain, best_tree, mean, measure, measure_oracle
from wanspec_kernels.simulation.scenario import DrafterProfile, Scenario
from wanspec_kernels.simulation.traces import load

RESULTS = Path("bench/results/wide_area.json")
TRACES = ("bundled", "synthetic:0.8", "synthetic:0.9")
ROUND_TRIPS_MS = (10.0, 30.0, 50.0, 100.0, 150.0)
POLICIES = {
    "never local": NeverLocal(),
    "entropy gate": EntropyGate(passes=8),
    "expected gain": ExpectedGain(),
}
ORACLE = "oracle"
STALLS = LinkProfile(10.0, stall_ms=2000.0, stall_every_ms=20_000.0)


def scenario(trace: str, tokens: int, seed: int) -> Scenario:
    """Target pass 30 ms, home 3 ms, remote 4 ms, 64 rows: the defaults."""
    return Scenario(load(trace), tokens=tokens, seed=seed)


def baseline(job: tuple[str, str, int, int]) -> dict[str, Any]:
    trace, kind, tokens, texts = job
    best = best_tree if kind == "tree" else best_chain
    return asdict(best(*(scenario(trace, tokens, seed) for seed in range(texts))))


def run(job: tuple[str, str, LinkProfile, int, int, int]) -> dict[str, Any]:
    """Means over so many texts."""
    trace, policy, link, drafters, tokens, texts = job
    runs = []
    for seed in range(texts):
        wide = replace(scenario(trace, tokens, seed), drafters=(DrafterProfile(link),) * drafters)
        if policy == ORACLE:
            runs.append(measure_oracle(wide))
        else:
            runs.append(measure(replace(wide, policy=POLICIES[policy])))
    found = mean(runs)
    return {
        "trace": trace,
        "policy": policy,
        "link": asdict(link),
        "drafters": drafters,
        "measures": asdict(found),
    }


def study(
    tokens: int, texts: int, workers: int, only: set[str], earlier: dict[str, Any]
) -> dict[str, Any]:
    """Runs of the policies `only`, beside earlier ones of the others."""
    started = time.perf_counter()
    jobs = [
        (trace, policy, LinkProfile(round_trip_ms), 1, tokens, texts)
        for trace in TRACES
        for round_trip_ms in ROUND_TRIPS_MS
        for policy in (*POLICIES, ORACLE)
        if policy in only
    ]
    jobs += [(trace, "expected gain", STALLS, 1, 4 * tokens, texts) for trace in TRACES]
    jobs += [
        (trace, "expected gain", LinkProfile(STALLS.round_trip_ms), 1, 4 * tokens, texts)
        for trace in TRACES
    ]
    with ProcessPoolExecutor(workers) as pool:
        kinds = [(trace, kind) for trace in TRACES for kind in ("tree", "chain")]
        tuned = [
            pool.submit(baseline, (trace, kind, tokens, texts))
            for trace, kind in kinds
            if "baselines" not in earlier
        ]
        runs = [run for run in earlier.get("runs", []) if run["policy"] not in only]
        for number, found in enumerate(pool.map(run, jobs), 1):
            runs.append(found | {"tokens": jobs[number - 1][4]})
            typer.echo(f"{number} of {len(jobs)}: {found['trace']}, {found['policy']}")
        best = earlier.get("baselines")
        if best is None:
            best = {trace: {} for trace in TRACES}
            for (trace, kind), future in zip(kinds, tuned, strict=True):
                best[trace][kind] = future.result()
    return {
        "machine": describe(),
        "seconds": round(time.perf_counter() - started + earlier.get("seconds", 0.0), 1),
        "tokens": tokens,
        "texts": texts,
        "expected gain": asdict(POLICIES["expected gain"]),
        "baselines": best,
        "runs": runs,
    }


def main(
    draw: Annotated[bool, typer.Option("--draw", help="From the stored data only.")] = False,
    tokens: int = 1000,
    texts: int = 4,
    workers: int = os.cpu_count() or 1,
    only: Annotated[
        list[str] | None, typer.Option(help="Policies to measure again; the others are kept.")
    ] = None,
) -> None:
    """Measure, or draw what was measured."""
    if not draw:
        earlier = json.loads(RESULTS.read_text()) if only else {}
        if earlier and (earlier["tokens"], earlier["texts"]) != (tokens, texts):
            raise typer.BadParameter("expected the tokens and the texts of the stored results")
        chosen = set(only or (*POLICIES, ORACLE))
        results = study(tokens, texts, workers, chosen, earlier)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    wide_area_report.write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    typer.run(main)
