"""Measures: what a run gave, and the best that co-located speculation gives on the same texts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from statistics import fmean, quantiles
from typing import Any, TypeVar

from drafter.growth import GrowthShape
from wanspec_kernels.simulation.record import Record
from wanspec_kernels.simulation.rounds import Rounds
from wanspec_kernels.simulation.scenario import Scenario
from wanspec_kernels.simulation.world import World

CHAIN = GrowthShape(
    width=1, max_children=1, max_root_children=1, min_path_probability=1e-9, min_probability=0.0
)
CHAIN_DEPTHS = (3, 4, 5, 6, 7, 8, 10, 12, 16)
TREE_DEPTHS = (4, 6, 8, 10, 12, 16, 20)
TREE_WIDTHS = (1, 2, 4, 8, 16)
TREE_CHILDREN = (2, 4, 8)
BATCH_DEPTHS = (1, 2, 3, 4, 5, 6, 8)
BATCH_ROWS = (2, 3, 4, 6, 8, 12, 16, 32)
BATCH_WIDTHS = (2, 4, 16)
FINALISTS = 8
WARM_SHARE = 0.3  # of a run's tokens, before its pace is measured

M = TypeVar("M", bound=Any)
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@dataclass(frozen=True, slots=True)
class Measures:
    """Means over all requests of a run; per token unless said."""

    latency_ms: float
    p95_ms: float  # of a token's share of the round that brought it
    tokens_per_s: float  # of the whole batch, while all of it runs
    local_passes: float
    tokens_per_pass: float  # of a request
    rows_per_pass: float  # of a request
    hit_rate: float  # target passes that needed no draft pass at home
    waited_ms: float  # in which the accelerator was idle
    waste: float  # share of the nodes received that were never accepted
    wire_bytes: float
    drafts_per_s: float  # frames with drafts and answers, of the drafter that sends most
    up_mbit: float  # and what they take of it
    hot_ms: float  # of accelerator time where the target runs: its passes and home's
    exact: bool  # every text is the target's own


def measure(run: Scenario | Rounds) -> Measures:
    """Run a scenario by the scheduler, or its texts by fixed co-located rounds."""
    if isinstance(run, Rounds):
        return measures_of(run.run())
    world = World(run)
    world.run()
    return measures_of(world.record)


def measures_of(record: Record) -> Measures:
    statistics = [run.statistics for run in record.runs]
    tokens = sum(len(run.token_ids) for run in record.runs)
    parts = sum(each.requests for each in record.passes)
    token_ms = [ms for run in record.runs for ms in run.token_ms]
    accepted = sum(s.remote_tokens_accepted for s in statistics)
    return Measures(
        latency_ms=sum(run.elapsed_ms for run in record.runs) / tokens,
        p95_ms=quantiles(token_ms, n=20)[-1] if len(token_ms) > 1 else fmean(token_ms),
        tokens_per_s=pace(record),
        local_passes=sum(s.local_draft_passes for s in statistics) / tokens,
        tokens_per_pass=tokens / parts,
        rows_per_pass=sum(each.rows for each in record.passes) / parts,
        hit_rate=sum(not each.home_passes for each in record.passes) / len(record.passes),
        waited_ms=(record.ended_ms - record.busy_ms) / tokens,
        waste=1.0 - accepted / record.nodes_received if record.nodes_received else 0.0,
        wire_bytes=sum(record.up_bytes + record.down_bytes) / tokens,
        drafts_per_s=1e3 * max(record.up_messages, default=0) / record.ended_ms,
        up_mbit=8e-3 * max(record.up_bytes, default=0) / record.ended_ms,
        hot_ms=record.busy_ms / tokens,
        exact=all(run.token_ids == run.expected_ids for run in record.runs),
    )


def pace(record: Record) -> float:
    """Tokens a second of the whole batch: once it is warm, and until a request ends."""
    warm = WARM_SHARE * sum(each.tokens for each in record.passes)
    tokens, begins_ms, before = 0, 0.0, 0
    for each in record.passes:
        if tokens <= warm:
            begins_ms, before = each.ended_ms, tokens + each.tokens
        tokens += each.tokens
        if each.ended_ms == record.first_finish_ms:
            break
    if tokens <= before:  # Some request ended while others were not warm yet.
        return 1e3 * sum(each.tokens for each in record.passes) / record.ended_ms
    assert record.first_finish_ms is not None
    return 1e3 * (tokens - before) / (record.first_finish_ms - begins_ms)


def mean(found: Sequence[M]) -> M:
    """Of what runs with as many tokens each gave; the last field is `exact`."""
    *numbers, exact = zip(*map(astuple, found), strict=True)
    averaged: M = type(found[0])(*map(fmean, numbers), all(exact))
    return averaged


@dataclass(frozen=True, slots=True)
class Baseline:
    """Co-located speculation at its best: no drafter elsewhere, fixed passes and rows a round."""

    passes: int  # a round
    rows: int  # of a request's tree, at most
    shape: GrowthShape
    measures: Measures

    def rounds(self, scenario: Scenario) -> Rounds:
        """Of the same kind, on the texts of a scenario."""
        return Candidate(self.passes, self.rows, self.shape).rounds(scenario)


@dataclass(frozen=True, slots=True)
class Candidate:
    passes: int
    rows: int
    shape: GrowthShape

    def rounds(self, scenario: Scenario) -> Rounds:
        limits = replace(scenario.limits, max_rows=self.rows)
        return Rounds(replace(scenario, limits=limits), self.passes, self.shape)


def plain(scenario: Scenario) -> Measures:
    """The target alone."""
    return measure(replace(scenario, drafters=(), home=None))


def best_chain(*scenarios: Scenario, depths: Iterable[int] = CHAIN_DEPTHS) -> Baseline:
    rows = scenarios[0].limits.max_rows
    return _best(scenarios, [Candidate(depth, rows, CHAIN) for depth in depths])


def best_tree(
    *scenarios: Scenario, depths: Iterable[int] | None = None, mapped: Map = map
) -> Baseline:
    """Over depth, nodes a pass and children a node; for several requests, over rows as well.

    `mapped` may spread the runs over processes.
    """
    return _best(scenarios, tree_candidates(scenarios[0], depths), mapped)


def tree_candidates(scenario: Scenario, depths: Iterable[int] | None = None) -> list[Candidate]:
    """One request takes all the rows that it may; several are in each other's way."""
    most = scenario.limits.max_rows
    if scenario.requests == 1:
        shapes = [_tree(w, children) for w in TREE_WIDTHS for children in TREE_CHILDREN]
        return [Candidate(d, most, shape) for d in depths or TREE_DEPTHS for shape in shapes]
    shapes = [CHAIN, *(_tree(width, 8) for width in BATCH_WIDTHS)]
    rows = sorted({min(rows, most) for rows in BATCH_ROWS})
    return [
        Candidate(d, r, shape)
        for d in depths or BATCH_DEPTHS
        for r in rows
        if r > d  # else the last passes draft what nobody verifies
        for shape in shapes
    ]


def _tree(width: int, children: int) -> GrowthShape:
    return GrowthShape(
        width=width,
        max_children=children,
        max_root_children=16,
        min_probability=0.002,
        min_path_probability=0.002,
    )


def _best(
    scenarios: Sequence[Scenario], candidates: Sequence[Candidate], mapped: Map = map
) -> Baseline:
    """The best on average; those that are among the `FINALISTS` of the first scenario are tried.

    The first scenario is one of a single request, whose machines have the others in step with it.
    """

    def latency_ms(baseline: Baseline) -> float:
        return baseline.measures.latency_ms

    first = in_step(scenarios[0])
    found = sorted(mapped(partial(_fixed, [first]), candidates), key=latency_ms)
    if len(scenarios) > 1 or first != scenarios[0]:
        finalists = [Candidate(each.passes, each.rows, each.shape) for each in found[:FINALISTS]]
        found = list(mapped(partial(_fixed, scenarios), finalists))
    best: Baseline = min(found, key=latency_ms)
    return best


def in_step(scenario: Scenario) -> Scenario:
    """One of the requests, where all of them take part in each pass with as many rows."""
    if scenario.requests == 1:
        return scenario
    home = scenario.home and scenario.home.shared(scenario.requests)
    target = scenario.target.shared(scenario.requests)
    return replace(scenario, target=target, home=home, requests=1)


def _fixed(scenarios: Sequence[Scenario], candidate: Candidate) -> Baseline:
    found = [measure(candidate.rounds(scenario)) for scenario in scenarios]
    return Baseline(candidate.passes, candidate.rows, candidate.shape, mean(found))
