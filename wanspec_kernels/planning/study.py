"""Study: candidates narrowed down on one seed, and the best of them measured on others."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import Any

from wanspec_kernels.planning.candidates import (
    Candidate,
    colocated,
    fixed,
    in_step,
    policies_of,
    remote,
)
from wanspec_kernels.planning.errors import UnsupportedError
from wanspec_kernels.planning.inputs import Inputs
from wanspec_kernels.planning.support import drafter_refusals, refusals, rows_of, widths_of
from wanspec_kernels.simulation.measures import Measures, best_tree, measure

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]

SCREEN_SEED = 0
SCREEN_SHARE = 0.5  # of the tokens
SCREEN_MARGIN = 0.85  # of what links and verifier take: other texts may ask for more
MOST_PAIRED = 3  # drafters
FINALISTS = 4
NEARLY = 1.05  # times the least latency


@dataclass(frozen=True, slots=True)
class Study:
    """What was run. Measures of the finalists are by seed, in the order of `seeds`."""

    seeds: tuple[int, ...]
    tokens: int
    here: dict[str, tuple[Measures, ...]]  # without any drafter elsewhere
    best_here: str  # the fastest of these
    finalists: dict[Candidate, tuple[Measures, ...]]
    refused: dict[str, list[str]]  # drafters of which nothing can be said
    dropped: dict[Candidate, list[str]]  # candidates whose runs say nothing


def study(
    inputs: Inputs,
    *,
    tokens: int,
    seeds: int,
    mapped: Map = map,
    progress: Callable[[str], None] = lambda _: None,
) -> Study:
    """Run it; `mapped` may spread runs over processes.

    Raises:
        UnsupportedError: of the whole plan, or of every drafter or candidate, nothing can be said.
    """
    if reasons := refusals(inputs):
        raise UnsupportedError(reasons)
    refused = {
        drafter.name: reasons
        for drafter in inputs.drafters
        if (reasons := drafter_refusals(inputs, drafter))
    }
    usable = [i for i, drafter in enumerate(inputs.drafters) if drafter.name not in refused]
    if not usable:
        raise UnsupportedError([f"{n}: {reason}" for n, rs in refused.items() for reason in rs])
    screen = _Screen(inputs, max(1, int(SCREEN_SHARE * tokens)), mapped, {}, {})
    finalists = _narrow(screen, usable, progress)
    progress("co-located speculation")
    seeded = [colocated(inputs, tokens, SCREEN_SEED + 1 + number) for number in range(seeds)]
    here = {"the target alone": [replace(scenario, home=None) for scenario in seeded]}
    if inputs.home is not None:
        tuned = best_tree(in_step(colocated(inputs, screen.tokens, SCREEN_SEED)))
        name = f"co-located, {tuned.passes} passes a round"
        here[name] = [fixed(in_step(scenario), tuned) for scenario in seeded]
        here["co-located, expected gain"] = seeded
    progress("the best of them, on other texts")
    elsewhere = {c: [remote(scenario, inputs, c) for scenario in seeded] for c in finalists}
    every = [scenario for row in [*here.values(), *elsewhere.values()] for scenario in row]
    results = iter(mapped(measure, every))
    without = {name: tuple(next(results) for _ in row) for name, row in here.items()}
    if inputs.home is not None:  # its accelerators worked for all requests
        without[name] = tuple(replace(m, hot_ms=m.hot_ms / inputs.requests) for m in without[name])
    measured = {c: tuple(next(results) for _ in row) for c, row in elsewhere.items()}
    dropped = dict(screen.dropped)
    for candidate, runs in measured.items():
        if reasons := [reason for m in runs for reason in candidate.refusals(inputs, m)]:
            dropped[candidate] = reasons[:1]
    kept = {c: runs for c, runs in measured.items() if c not in dropped}
    if not kept:
        raise UnsupportedError([reason for reasons in dropped.values() for reason in reasons])
    best = min(without, key=lambda name: fmean(m.latency_ms for m in without[name]))
    return Study(tuple(s.seed for s in seeded), tokens, without, best, kept, refused, dropped)


def _narrow(
    screen: "_Screen", usable: list[int], progress: Callable[[str], None]
) -> list[Candidate]:
    """Drafters and widths, then pairs of the best, then trees and policies for the best of all."""
    inputs = screen.inputs
    widest = rows_of(inputs)[-1]
    progress("each drafter by itself")
    singles = [c for index in usable for c in _widths(inputs, (index,), widest)]
    best = list(dict.fromkeys(c.drafters[0] for c in screen.best(singles)))[:MOST_PAIRED]
    progress("pairs of drafters")
    pairs = [c for pair in combinations(sorted(best), 2) for c in _widths(inputs, pair, widest)]
    firsts = screen.fastest_and_leanest([*singles, *pairs], 1)
    progress("trees and policies")
    varied = [
        replace(first, rows=rows, policy=policy)
        for first in firsts
        for rows in rows_of(inputs)
        for policy in policies_of(inputs)
    ]
    return screen.fastest_and_leanest([*singles, *pairs, *varied], FINALISTS // 2)


@dataclass(slots=True)
class _Screen:
    """Runs of one seed, each made once."""

    inputs: Inputs
    tokens: int
    mapped: Map
    measures: dict[Candidate, Measures]
    dropped: dict[Candidate, list[str]]

    def best(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those of whose runs something can be said, the fastest first."""
        wanted = list(dict.fromkeys(candidates))
        new = [c for c in wanted if c not in self.measures and c not in self.dropped]
        here = colocated(self.inputs, self.tokens, SCREEN_SEED)
        scenarios = [remote(here, self.inputs, candidate) for candidate in new]
        for candidate, measures in zip(new, self.mapped(measure, scenarios), strict=True):
            if reasons := candidate.refusals(self.inputs, measures, SCREEN_MARGIN):
                self.dropped[candidate] = reasons
            else:
                self.measures[candidate] = measures
        kept = [c for c in wanted if c in self.measures]
        if not kept:
            raise UnsupportedError(
                [
                    f"{' and '.join(c.names(self.inputs))}, {c.width} nodes a pass: {reason}"
                    for c in wanted
                    for reason in self.dropped[c]
                ]
            )
        return sorted(kept, key=lambda c: (self.measures[c].latency_ms, len(c.drafters), c.width))

    def fastest_and_leanest(self, candidates: Iterable[Candidate], count: int) -> list[Candidate]:
        """So many by latency; and of those nearly as fast, by accelerator time at the target."""
        fastest = self.best(candidates)
        most_ms = NEARLY * self.measures[fastest[0]].latency_ms
        near = [c for c in fastest if self.measures[c].latency_ms <= most_ms]
        leanest = sorted(near, key=lambda c: self.measures[c].hot_ms)
        return list(dict.fromkeys([*fastest[:count], *leanest[:count]]))


def _widths(inputs: Inputs, drafters: tuple[int, ...], rows: int) -> list[Candidate]:
    """A candidate for each width that all of these can be asked for."""
    widths = widths_of(inputs, [inputs.drafters[index] for index in drafters])
    return [Candidate(drafters, width, rows) for width in widths]
