"""What lying drafters cost, in virtual time: each lie of the catalogue at each round trip.

python -m bench.liars             both traces, with and without a drafter at home
"""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Annotated

import numpy as np
import typer

from wanspec_kernels.simulation.liars import LIES, deceived
from wanspec_kernels.simulation.link import LinkProfile
from wanspec_kernels.simulation.scenario import DrafterProfile, Machine, Scenario
from wanspec_kernels.simulation.trace import BEYOND, Trace
from wanspec_kernels.simulation.traces import load
from wanspec_kernels.simulation.world import World

ROUND_TRIPS_MS = (2.0, 10.0, 20.0, 50.0, 100.0)
TRACES = ("bundled", "synthetic:0.8")
NAMES = {lie.__name__: lie for lie in LIES}
HONEST = "always wrong"  # a drafter that believes what it sends
WAIT_MS = 0.4 * 30.0  # the one bounded wait


def elapsed_ms(one: Scenario, name: str | None, round_trip_ms: float = 0.0) -> float:
    """Of the scenario's text with one drafter that tells this lie; None: with no drafter.

    Raises:
        RuntimeError: the text is not the target's own.
    """
    one = replace(one, drafters=(DrafterProfile(LinkProfile(round_trip_ms)),))
    if name is None:
        world = World(replace(one, drafters=()))
    elif name == HONEST:
        model = always_wrong(one.trace)
        world = World(replace(one, drafters=(replace(one.drafters[0], trace=model),)))
    else:
        world = deceived(one, NAMES[name])
    run = world.run()[0]
    if run.token_ids != run.expected_ids:
        raise RuntimeError(f"{name}: the text is not the target's own")
    return run.elapsed_ms


def always_wrong(trace: Trace) -> Trace:
    """A draft model that holds none of the target's tokens, and is as sure as before."""
    return replace(trace, ranks=np.full_like(trace.ranks, BEYOND))


def _total(job: tuple[str, bool, int, int, str | None, float]) -> float:
    trace, at_home, tokens, texts, name, round_trip_ms = job
    home = Machine(3.0) if at_home else None
    ones = (Scenario(load(trace), home=home, tokens=tokens, seed=seed) for seed in range(texts))
    return sum(elapsed_ms(one, name, round_trip_ms) for one in ones)


def main(
    tokens: Annotated[int, typer.Option(help="Tokens to decode in each text.")] = 1000,
    texts: Annotated[int, typer.Option(help="Texts that a cell sums up.")] = 4,
    workers: Annotated[int, typer.Option(help="Processes that share the work.")] = (
        os.cpu_count() or 1
    ),
) -> None:
    """Print the time with each liar over the time with no drafter."""
    with ProcessPoolExecutor(workers) as pool:
        for trace in TRACES:
            for at_home in (True, False):
                alone = _total((trace, at_home, tokens, texts, None, 0.0))
                beside = "with" if at_home else "without"
                typer.echo(f"\n{trace}, {beside} a drafter at home: {alone / texts:.0f} ms alone")
                typer.echo(f"{'round trip, ms':16}" + "".join(f"{r:8g}" for r in ROUND_TRIPS_MS))
                names = (*NAMES, HONEST)
                jobs = [
                    (trace, at_home, tokens, texts, name, round_trip_ms)
                    for name in names
                    for round_trip_ms in ROUND_TRIPS_MS
                ]
                ratios = [found / alone for found in pool.map(_total, jobs)]
                for row, name in enumerate(names):
                    cells = ratios[row * len(ROUND_TRIPS_MS) :][: len(ROUND_TRIPS_MS)]
                    typer.echo(f"{name:16}" + "".join(f"{ratio:8.3f}" for ratio in cells))


if __name__ == "__main__":
    typer.run(main)
