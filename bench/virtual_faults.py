"""Random faults in virtual time: text, time beside co-located speculation, and recovery."""

from collections import Counter
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import simpy

from drafter.growth import GrowthShape
from wanspec_kernels.events import Event, Offered
from wanspec_kernels.simulation.faults import KINDS, Faults
from wanspec_kernels.simulation.link import LinkProfile
from wanspec_kernels.simulation.measures import Candidate
from wanspec_kernels.simulation.scenario import DrafterProfile, Machine, Scenario
from wanspec_kernels.simulation.synthetic import generate
from wanspec_kernels.simulation.trace import Trace
from wanspec_kernels.simulation.world import World

SHAPE = GrowthShape(width=6, max_children=3)
CO_LOCATED = (4, 6, 8, 10, 12, 16)  # passes a round; requests are held against the best of them
LENGTHS = (120, 400)  # tokens of a timed text
WAIT_MS = 0.4 * 30.0  # the one bounded wait


def scenario(trace: Trace, seed: int, tokens: int) -> Scenario:
    """One to three drafters, some of them of little use, on links of all kinds."""
    rng = Random(seed)
    drafters = tuple(
        DrafterProfile(
            LinkProfile(
                rng.choice([2.0, 20.0, 80.0]),
                rng.choice([0.0, 15.0]),
                rng.choice([None, 0.5]),
                rng.choice([0.0, 0.1]),
            ),
            Machine(rng.choice([4.0, 25.0])),
            SHAPE,
            rng.choice([16, 256]),
        )
        for _ in range(rng.randint(1, 3))
    )
    return Scenario(
        trace,
        drafters,
        home=rng.choice([None, Machine(3.0), Machine(3.0)]),
        home_shape=SHAPE,
        tokens=tokens,
        requests=rng.choice([1, 1, 2]),
        seed=seed,
    )


def co_located_ms(one: Scenario, passes: int) -> float:
    """The same text by fixed rounds of so many passes."""
    rounds = Candidate(passes, one.limits.max_rows, SHAPE).rounds(one)
    return rounds.run().runs[0].elapsed_ms


def under_faults(one: Scenario) -> tuple[float, bool]:
    """ms of one text, and whether it is right."""
    world = World(one)
    Faults(world, one.seed, tuple(kind for kind in KINDS if kind != "restart"))
    run = world.run()[0]
    return run.elapsed_ms, run.token_ids == run.expected_ids


def timed_scenario(trace: Trace, seed: int, tokens: int) -> Scenario:
    return replace(scenario(trace, seed, tokens), home=Machine(3.0), requests=1)


def recovery_ms(trace: Trace, seed: int, kind: str, round_trip_ms: float) -> float:
    """From when a link is whole again to the first draft that knows the text as it was then.

    `kind` "stall": nothing gets through for 2 s. "redial": the connection is lost, and begins anew.
    """
    drafter = DrafterProfile(LinkProfile(round_trip_ms), shape=SHAPE)
    heard = list[float]()
    back_ms, length = 2500.0, 0

    def watch(event: Event) -> None:
        if isinstance(event, Offered) and length and event.draft.base_length >= length:
            heard.append(world.env.now)

    world = World(Scenario(trace, (drafter,), home_shape=SHAPE, tokens=400, seed=seed), watch)
    remote = world.remotes[0]

    def faults() -> Generator[simpy.Event, Any, None]:
        nonlocal length
        yield world.env.timeout(500.0)
        if kind == "stall":
            for way in (remote.up, remote.down):
                way.stall(back_ms)
        else:
            remote.disconnect()
        yield world.env.timeout(back_ms - 500.0)
        length = world.sequences[1].pool.length
        if kind == "redial":
            remote.reconnect()

    world.env.process(faults())
    world.run()
    return heard[0] - back_ms


def _timed(job: tuple[int, int]) -> tuple[float, bool, list[float]]:
    seed, tokens = job
    one = timed_scenario(_trace(), seed, tokens)
    return *under_faults(one), [co_located_ms(one, passes) for passes in CO_LOCATED]


@cache
def _trace() -> Trace:
    return generate(0.8, positions=16384, texts=64)


def against_co_located(tokens: int, runs: list[tuple[float, bool, list[float]]]) -> dict[str, Any]:
    """Held against the rounds that are best on average, and against the best for each text."""
    totals = [sum(times) for times in zip(*(co_located for *_, co_located in runs), strict=True)]
    tuned = totals.index(min(totals))
    found: dict[str, Any] = {
        "tokens": tokens,
        "texts": len(runs),
        "exact": sum(right for _, right, _ in runs),
        "passes": CO_LOCATED[tuned],
    }
    for name, pairs in (
        ("tuned", [(ours, times[tuned]) for ours, _, times in runs]),
        ("hindsight", [(ours, min(times)) for ours, _, times in runs]),
        ("tuned_in_hindsight", [(times[tuned], min(times)) for *_, times in runs]),
    ):
        ratios = sorted(ours / theirs for ours, theirs in pairs)
        found[name] = {
            "within_bound": sum(ours <= 1.05 * theirs + WAIT_MS for ours, theirs in pairs),
            "mean": sum(ratios) / len(ratios),
            "p95": ratios[int(0.95 * len(ratios))],
            "worst": ratios[-1],
        }
    return found


def study(schedules: int) -> dict[str, Any]:
    trace = _trace()
    counts: Counter[str] = Counter()
    exact = 0
    for seed in range(schedules):
        world = World(scenario(trace, seed, 30))
        faults = Faults(world, seed)
        exact += all(run.token_ids == run.expected_ids for run in world.run())
        counts += faults.counts
    with ProcessPoolExecutor() as pool:
        timed = [
            against_co_located(
                tokens, list(pool.map(_timed, [(seed, tokens) for seed in range(schedules // 4)]))
            )
            for tokens in LENGTHS
        ]
    recoveries = {
        f"{kind}, {round_trip_ms:g} ms": max(
            recovery_ms(trace, seed, kind, round_trip_ms) for seed in range(20)
        )
        for kind in ("stall", "redial")
        for round_trip_ms in (20.0, 40.0, 100.0)
    }
    return {
        "recoveries": recoveries,
        "schedules": schedules,
        "exact": exact,
        "faults": dict(counts),
        "timed": timed,
    }
