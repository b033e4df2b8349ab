"""Requests at a time: tokens a second by the scheduler, plain decoding and co-located rounds.

Virtual time: an 8B target whose pass times were measured (`docs/target-pass.md`), drafters 20 ms
away, on the bundled trace. No hardware is needed.

python -m bench.batches          measure: bench/results/batches.json
python -m bench.batches --draw   the tables, into docs/batches.md
"""

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from bench import batches_report
from bench.liars import always_wrong
from bench.machine import describe
from wanspec_kernels.engine.request import Limits
from wanspec_kernels.simulation.liars import LIES, deceived
from wanspec_kernels.simulation.link import LinkProfile
from wanspec_kernels.simulation.measures import (
    Measures,
    in_step,
    mean,
    measure,
    measures_of,
    plain,
    tree_candidates,
)
from wanspec_kernels.simulation.profiles import H200_1B, H200_8B
from wanspec_kernels.simulation.scenario import DrafterProfile, Scenario, shape_of
from wanspec_kernels.simulation.traces import load
from wanspec_kernels.simulation.world import World

RESULTS = Path("bench/results/batches.json")
ROUND_TRIP_MS = 20.0
CONTEXT = 2048
DRAFTER_ROWS = 128  # nodes that a drafter's pass expands, shared among its requests
REQUESTS_A_DRAFTER = 8
FINALISTS = 6  # of the rounds, of which the screen finds the best in step
FIXED_ROWS = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Load:
    """So many requests, each so many tokens long, and over how many runs means are taken."""

    requests: int
    tokens: int
    texts: int


LOADS = (
    *(Load(1, 400, 8), Load(8, 300, 2), Load(32, 160, 1), Load(64, 120, 1)),
    *(Load(128, 60, 1), Load(256, 40, 1)),
)
USELESS_AT = (1, 8, 32, 64, 256)


def scenario(load_: Load, seed: int) -> Scenario:
    """Nobody drafts."""
    return Scenario(
        load("bundled"),
        target=H200_8B,
        home=None,
        requests=load_.requests,
        context=CONTEXT,
        tokens=load_.tokens,
        seed=seed,
    )


def drafted(one: Scenario, *, home: bool, remote: bool) -> Scenario:
    count = -(-one.requests // REQUESTS_A_DRAFTER) if remote else 0
    shape = shape_of(DRAFTER_ROWS, min(one.requests, REQUESTS_A_DRAFTER))
    drafter = DrafterProfile(LinkProfile(ROUND_TRIP_MS), H200_1B, shape)
    return replace(
        one,
        drafters=(drafter,) * count,
        shares_drafters=True,
        home=H200_1B if home else None,
    )


def ours(job: tuple[Load, bool, bool, int]) -> Measures:
    """Means over the load's texts: with a drafter at home or not, with remotes or not, and with so
    many rows a request at most."""
    load_, home, remote, rows = job
    found = []
    for seed in range(load_.texts):
        one = drafted(scenario(load_, seed), home=home, remote=remote)
        found.append(measure(replace(one, limits=Limits(max_rows=rows))))
    return mean(found)


def alone(load_: Load) -> Measures:
    return mean([plain(scenario(load_, seed)) for seed in range(load_.texts)])


def best_rounds(load_: Load) -> dict[str, Any]:
    """The fastest co-located rounds: a scan in step over one text, then whole batches."""
    ones = [replace(scenario(load_, seed), home=H200_1B) for seed in range(load_.texts)]
    screen = replace(in_step(ones[0]), tokens=300)
    candidates = tree_candidates(ones[0])
    pace = {c: measure(c.rounds(screen)).tokens_per_s for c in candidates}
    finalists = sorted(candidates, key=lambda c: -pace[c])[:FINALISTS]
    found = [(c, mean([measure(c.rounds(one)) for one in ones])) for c in finalists]
    best, measures = max(found, key=lambda pair: pair[1].tokens_per_s)
    return {
        "passes": best.passes,
        "rows": best.rows,
        "width": best.shape.width,
        "tried": len(candidates),
        "measures": batches_report.as_dict(measures),
    }


def useless(job: tuple[Load, str, bool]) -> float:
    """The pace with drafters that are of no use, over that of plain decoding."""
    load_, name, home = job
    paces = []
    for seed in range(load_.texts):
        one = drafted(scenario(load_, seed), home=home, remote=True)
        if name == "random":
            wrong = always_wrong(one.trace)
            one = replace(one, drafters=tuple(replace(d, trace=wrong) for d in one.drafters))
            world = World(one)
        else:
            world = deceived(one, next(lie for lie in LIES if lie.__name__ == name))
        world.run()
        found = measures_of(world.record)
        if not found.exact:
            raise RuntimeError(f"{name}: the text is not the target's own")
        paces.append(found.latency_ms)
    return alone(load_).latency_ms / fmean(paces)


def study(workers: int, only: set[str]) -> dict[str, Any]:
    started = time.perf_counter()
    earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found: dict[str, Any] = {key: earlier.get(key, {}) for key in ("loads", "useless")}
    with ProcessPoolExecutor(workers) as pool:
        if "loads" in only:
            futures = {}
            for each in LOADS:
                futures[each] = {
                    "alone": pool.submit(alone, each),
                    "rounds": pool.submit(best_rounds, each),
                    "home": pool.submit(ours, (each, True, False, 64)),
                    "remote": pool.submit(ours, (each, False, True, 64)),
                    "both": pool.submit(ours, (each, True, True, 64)),
                }
            for each, jobs in futures.items():
                entry: dict[str, Any] = {"tokens": each.tokens, "texts": each.texts}
                for name, future in jobs.items():
                    result = future.result()
                    entry[name] = result if name == "rounds" else batches_report.as_dict(result)
                found["loads"][str(each.requests)] = entry
                typer.echo(batches_report.line(each.requests, entry))
        if "useless" in only:
            names = [*(lie.__name__ for lie in LIES), "random"]
            for each in LOADS:
                if each.requests not in USELESS_AT:
                    continue
                short = replace(each, tokens=max(60, each.tokens // 4), texts=1)
                jobs_ = [(short, name, False) for name in names]
                ratios = dict(zip(names, pool.map(useless, jobs_), strict=True))
                found["useless"][str(each.requests)] = ratios
                worst = min(ratios, key=lambda name: ratios[name])
                typer.echo(f"{each.requests}: the worst is {worst}, {ratios[worst]:.3f}")
    return {
        "machine": describe(),
        "seconds": round(time.perf_counter() - started, 1),
        **found,
    }


def main(
    draw: Annotated[bool, typer.Option("--draw", help="From the stored data only.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that share the work.")] = (
        os.cpu_count() or 1
    ),
    only: Annotated[
        list[str] | None, typer.Option(help="loads or useless; the other part is kept.")
    ] = None,
) -> None:
    """Measure, or draw what was measured."""
    if not draw:
        results = study(workers, set(only or ("loads", "useless")))
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    batches_report.write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    typer.run(main)
