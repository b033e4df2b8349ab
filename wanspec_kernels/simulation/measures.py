"""Measures: what a run gave, and the best that co-located speculation gives on the same texts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from statistics import fmean, quantiles
from typing import Any, TypeVar

from drafter.growth import GrowthShape
from wanspec_kernels.control.policies import AlwaysLocal, ExpectedGain
from wanspec_kernels.simulation.oracle import Oracle
from wanspec_kernels.simulation.scenario import Scenario
from wanspec_kernels.simulation.world import World

CHAIN = GrowthShape(
    width=1, max_children=1, max_root_children=1, min_path_probability=1e-9, min_probability=0.0
)
CHAIN_DEPTHS = (3, 4, 5, 6, 7, 8, 10, 12, 16)
TREE_DEPTHS = (4, 6, 8, 10, 12, 16, 20)
TREE_WIDTHS = (1, 2, 4, 8, 16)
TREE_CHILDREN = (2, 4, 8)
FINALISTS = 8

M = TypeVar("M", bound=Any)
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@dataclass(frozen=True, slots=True)
class Measures:
    """Means over all requests of a run; per token unless said."""

    latency_ms: float
    p95_ms: float  # of a token's share of the round that brought it
    local_passes: float
    ahead_passes: float  # of those, made while the target ran
    tokens_per_pass: float
    rows_per_pass: float
    hit_rate: float  # target passes that needed no draft pass at home
    waited_ms: float
    waste: float  # share of the nodes received that were never accepted
    wire_bytes: float
    drafts_per_s: float  # frames with drafts and answers, of the drafter that sends most
    up_mbit: float  # and what they take of it
    hot_ms: float  # of accelerator time where the target runs: its passes and home's
    exact: bool  # every text is the target's own


def measure(scenario: Scenario) -> Measures:
    """Run a scenario."""
    return _measure(World(scenario))


def measure_oracle(scenario: Scenario) -> Measures:
    """Run it with the path known to the policy, which has to be `ExpectedGain`."""
    world = World(scenario)
    if not isinstance(scenario.policy, ExpectedGain):
        raise TypeError(f"policy: expected ExpectedGain, got {type(scenario.policy).__name__}")
    for number, serving in world.servings.items():
        generation = serving.generation
        generation.policy = Oracle(scenario.policy, world.texts[number], generation)
    return _measure(world)


def _measure(world: World) -> Measures:
    runs = world.run()
    statistics = [run.statistics for run in runs]
    tokens = sum(s.tokens for s in statistics)
    passes = sum(s.target_passes for s in statistics)
    token_ms = [ms for run in runs for ms in run.token_ms]
    received = sum(remote.drafter.counters.num_nodes for remote in world.remotes)
    accepted = sum(s.remote_tokens_accepted for s in statistics)
    busy_ms = world.target.busy_ms + (world.home.busy_ms if world.home is not None else 0.0)
    return Measures(
        latency_ms=sum(run.elapsed_ms for run in runs) / tokens,
        p95_ms=quantiles(token_ms, n=20)[-1] if len(token_ms) > 1 else fmean(token_ms),
        local_passes=sum(s.local_draft_passes for s in statistics) / tokens,
        ahead_passes=sum(s.ahead_draft_passes for s in statistics) / tokens,
        tokens_per_pass=tokens / passes,
        rows_per_pass=sum(s.rows for s in statistics) / passes,
        hit_rate=sum(s.rounds_without_home for s in statistics) / passes,
        waited_ms=sum(s.waited_ms for s in statistics) / tokens,
        waste=1.0 - accepted / received if received else 0.0,
        wire_bytes=sum(r.up.num_bytes + r.down.num_bytes for r in world.remotes) / tokens,
        drafts_per_s=1e3
        * max((r.up.num_messages for r in world.remotes), default=0)
        / world.env.now,
        up_mbit=8e-3 * max((r.up.num_bytes for r in world.remotes), default=0) / world.env.now,
        hot_ms=busy_ms / tokens,
        exact=all(run.token_ids == run.expected_ids for run in runs),
    )


def mean(found: Sequence[M]) -> M:
    """Of what runs with as many tokens each gave; the last field is `exact`."""
    *numbers, exact = zip(*map(astuple, found), strict=True)
    averaged: M = type(found[0])(*map(fmean, numbers), all(exact))
    return averaged


@dataclass(frozen=True, slots=True)
class Baseline:
    """Co-located speculation at its best: no drafter elsewhere, fixed passes a round."""

    passes: int  # a round
    shape: GrowthShape
    measures: Measures


def plain(scenario: Scenario) -> Measures:
    """The target alone."""
    return measure(replace(scenario, drafters=(), home=None))


def best_chain(*scenarios: Scenario, depths: Iterable[int] = CHAIN_DEPTHS) -> Baseline:
    return _best(scenarios, [(depth, CHAIN) for depth in depths])


def best_tree(
    *scenarios: Scenario, depths: Iterable[int] = TREE_DEPTHS, mapped: Map = map
) -> Baseline:
    """Over depth, nodes a pass and children a node, with the scenarios' rows.

    `mapped` may spread the runs over processes.
    """
    return _best(
        scenarios,
        [
            (
                depth,
                GrowthShape(
                    width=width,
                    max_children=children,
                    max_root_children=16,
                    min_probability=0.002,
                    min_path_probability=0.002,
                ),
            )
            for depth in depths
            for width in TREE_WIDTHS
            for children in TREE_CHILDREN
        ],
        mapped,
    )


def _best(
    scenarios: Sequence[Scenario],
    candidates: Sequence[tuple[int, GrowthShape]],
    mapped: Map = map,
) -> Baseline:
    """The best on average; those that are among the `FINALISTS` of the first scenario are tried."""

    def latency_ms(baseline: Baseline) -> float:
        return baseline.measures.latency_ms

    first, *others = scenarios
    found = sorted(mapped(partial(_fixed, [first]), candidates), key=latency_ms)
    if others:
        found = [_fixed(scenarios, (each.passes, each.shape)) for each in found[:FINALISTS]]
    best: Baseline = min(found, key=latency_ms)
    return best


def _fixed(scenarios: Sequence[Scenario], candidate: tuple[int, GrowthShape]) -> Baseline:
    passes, shape = candidate
    policy = AlwaysLocal(passes)
    found = [
        measure(replace(scenario, drafters=(), policy=policy, home_shape=shape))
        for scenario in scenarios
    ]
    return Baseline(passes, shape, mean(found))
