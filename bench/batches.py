"""Requests at a time: tokens a second by the scheduler, plain decoding and co-located rounds.

Virtual time: an 8B target whose pass times were measured (`docs/target-pass.md`), drafters 20 ms
away, on the bundled trace. No hardware is needed.

python -m bench.batches          measure: bench/results/batches.json
python -m bench.batches --draw   the tables, into docs/batches.md
"""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
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


@dataclass(frozen=True, slots=True)
class Load:
    """So many requests, each so many tokens long, and over how many runs means are taken."""

    requests: int
    tokens: int
    texts: int


LOADS = (Load(1, 400, 8), Load(8, 300, 1), Load(32, 120, 1), Load(64, 80, 1))
# By requests: tokens, and the lies that are told. Simulating many liars takes long.
FEW = ("sure", "modest", "silent", "random")
EVERY = (*(lie.__name__ for lie in LIES), "random")
USELESS = {
    1: (200, EVERY),
    8: (60, EVERY),
    32: (30, EVERY),
    64: (40, FEW),
    256: (10, ("sure", "silent", "random")),
}


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


def ours(job: tuple[Load, bool, bool, int]) -> dict[str, Any]:
    """Means over the load's texts: with a drafter at home or not, with remotes or not, and with so
    many rows a request at most."""
    load_, home, remote, rows = job
    found = []
    for seed in range(load_.texts):
        one = drafted(scenario(load_, seed), home=home, remote=remote)
        found.append(measure(replace(one, limits=Limits(max_rows=rows))))
    return asdict(mean(found))


def alone(load_: Load) -> dict[str, Any]:
    return asdict(mean([plain(scenario(load_, seed)) for seed in range(load_.texts)]))


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
        "measures": asdict(measures),
    }


def useless(job: tuple[Load, str]) -> float:
    """The pace with drafters that are of no use, over that of plain decoding."""
    load_, name = job
    paces = []
    for seed in range(load_.texts):
        one = drafted(scenario(load_, seed), home=False, remote=True)
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
    return alone(load_)["latency_ms"] / fmean(paces)


def study(workers: int, only: set[str]) -> Iterator[dict[str, Any]]:
    """What is known so far, each time that there is more."""
    started = time.perf_counter()
    earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found: dict[str, Any] = {
        key: {} if key in only else earlier.get(key, {}) for key in ("loads", "useless")
    }
    commit = describe()["commit"]

    def so_far() -> dict[str, Any]:
        """Each part says by itself what it was measured of."""
        seconds = round(time.perf_counter() - started, 1)
        measured = {part: {"commit": commit, "seconds": seconds} for part in only}
        both = {**earlier.get("measured", {}), **measured}
        return {"machine": describe(), "measured": both, **found}

    with ProcessPoolExecutor(workers) as pool:
        futures = {
            each: {
                "alone": pool.submit(alone, each),
                "home": pool.submit(ours, (each, True, False, 64)),
                "remote": pool.submit(ours, (each, False, True, 64)),
                "both": pool.submit(ours, (each, True, True, 64)),
                "rounds": pool.submit(best_rounds, each),
            }
            for each in LOADS
            if "loads" in only
        }
        lies = {
            requests: {
                name: pool.submit(useless, (Load(requests, tokens, 1), name)) for name in names
            }
            for requests, (tokens, names) in USELESS.items()
            if "useless" in only
        }
        for each, jobs in futures.items():
            entry: dict[str, Any] = {"tokens": each.tokens, "texts": each.texts}
            entry |= {name: job.result() for name, job in jobs.items()}
            found["loads"][str(each.requests)] = entry
            typer.echo(batches_report.line(each.requests, entry))
            yield so_far()
        for requests, told in lies.items():
            ratios = {name: job.result() for name, job in told.items()}
            found["useless"][str(requests)] = ratios
            worst = min(ratios, key=lambda name: ratios[name])
            typer.echo(f"{requests}: the worst is {worst}, {ratios[worst]:.3f}")
            yield so_far()


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
        for results in study(workers, set(only or ("loads", "useless"))):
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    batches_report.write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    typer.run(main)
