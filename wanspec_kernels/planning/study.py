"""Study: candidates narrowed down on one seed, and the best of them measured on others."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

from wanspec_kernels.planning.candidates import (
    Candidate,
    colocated,
    remote,
)
from wanspec_kernels.planning.effort import Effort
from wanspec_kernels.planning.errors import UnsupportedError
from wanspec_kernels.planning.inputs import Inputs
from wanspec_kernels.planning.runs import Progress, Runs
from wanspec_kernels.planning.support import drafter_refusals, refusals, rows_of, widths_of
from wanspec_kernels.simulation.measures import Map, Measures, best_tree, tree_candidates
from wanspec_kernels.simulation.rounds import Rounds
from wanspec_kernels.simulation.scenario import Scenario

SCREEN_SEED = 0
SCREEN_MARGIN = 0.85  # of what links and verifier take: other texts may ask for more
MOST_PAIRED = 3  # drafters
FINALISTS = 4
NEARLY = 1.05  # times the least latency
CALIBRATION_TOKENS = 40
# Shares of the work, for the progress bar.
NARROWED, TUNED = 0.4, 0.45


ALONE = "the target alone"
AT_HOME = "at home alone, as the scheduler sees fit"


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
    effort: Effort,
    *,
    mapped: Map = map,
    progress: Progress = lambda share, what: None,
    clock: Callable[[], float] = time.monotonic,
) -> Study:
    """Run it, with as many tokens and seeds as `effort` asks for or its time allows.

    `mapped` may spread runs over processes; `progress` gets the share of the work that is done, and
    what is being done; `clock` is in seconds.

    Raises:
        UnsupportedError: of the whole plan, or of every drafter or candidate, nothing can be said.
    """
    began_s = clock()
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
    runs = Runs(mapped, progress)
    home_cost_s, screen_tokens = _calibrate(inputs, usable, effort, runs)
    screen = _Screen(inputs, screen_tokens, runs, {}, {}, {})
    finalists = _narrow(screen, usable)
    tuned = None
    if inputs.home is not None:
        base = colocated(inputs, screen.tokens, SCREEN_SEED)
        num_trees = len(tree_candidates(base))
        runs.begin("the best trees without remote drafters", NARROWED, TUNED, num_trees)
        tuned = best_tree(base, mapped=runs.mapped)
    cost_s = sum(screen.costs_s[candidate] for candidate in finalists) + 3 * home_cost_s
    tokens, seeds = effort.finals(effort.seconds - (clock() - began_s), cost_s)
    seeded = [colocated(inputs, tokens, SCREEN_SEED + 1 + number) for number in range(seeds)]
    here: dict[str, list[Scenario | Rounds]] = {
        ALONE: [replace(scenario, home=None) for scenario in seeded]
    }
    if tuned is not None:
        here[f"at home alone, {tuned.passes} passes a round"] = [
            tuned.rounds(scenario) for scenario in seeded
        ]
        here[AT_HOME] = [*seeded]
    elsewhere = {c: [remote(scenario, inputs, c) for scenario in seeded] for c in finalists}
    every: list[Scenario | Rounds] = [each for row in here.values() for each in row]
    every += [each for row in elsewhere.values() for each in row]
    runs.begin(f"the best of them, on {seeds} texts of {tokens} tokens", TUNED, 1.0, len(every))
    results = iter(found for found, _ in runs.measure(every))
    without = {name: tuple(next(results) for _ in row) for name, row in here.items()}
    measured = {c: tuple(next(results) for _ in row) for c, row in elsewhere.items()}
    dropped = dict(screen.dropped)
    for candidate, found in measured.items():
        if reasons := [reason for m in found for reason in candidate.refusals(inputs, m)]:
            dropped[candidate] = reasons[:1]
    kept = {c: found for c, found in measured.items() if c not in dropped}
    if not kept:
        raise UnsupportedError([reason for reasons in dropped.values() for reason in reasons])
    best = min(without, key=lambda name: fmean(m.latency_ms for m in without[name]))
    return Study(tuple(s.seed for s in seeded), tokens, without, best, kept, refused, dropped)


def _calibrate(
    inputs: Inputs, usable: Sequence[int], effort: Effort, runs: Runs
) -> tuple[float, int]:
    """Seconds that a token takes to simulate without remote drafters, and the screen's tokens."""
    here = colocated(inputs, CALIBRATION_TOKENS, SCREEN_SEED)
    widest = rows_of(inputs)[-1]
    singles = [c for index in usable for c in _widths(inputs, (index,), widest)]
    dearest = max(singles, key=lambda c: c.width)
    runs.begin("how long a run takes", 0.0, 0.0, 2)
    (_, remote_s), (_, home_s) = runs.measure([remote(here, inputs, dearest), here])
    pairs = min(len(usable), MOST_PAIRED) * (min(len(usable), MOST_PAIRED) - 1) // 2
    varied = 2 * len(rows_of(inputs)) * (2 if pairs else 1)
    # Narrow candidates take a good deal less than the widest one.
    remote_runs = 0.6 * (len(singles) + 2 * pairs * len(singles) / len(usable)) + varied
    home_runs = len(tree_candidates(here)) if inputs.home is not None else 0
    cost_s = (remote_s * remote_runs + home_s * home_runs) / CALIBRATION_TOKENS
    return home_s / CALIBRATION_TOKENS, effort.screen_tokens(cost_s)


def _narrow(screen: "_Screen", usable: list[int]) -> list[Candidate]:
    """Drafters and widths, then pairs of the best, then trees for the best of all."""
    inputs, begin = screen.inputs, screen.runs.begin
    widest = rows_of(inputs)[-1]
    singles = [c for index in usable for c in _widths(inputs, (index,), widest)]
    begin("each drafter by itself", 0.0, NARROWED / 3, len(singles))
    best = list(dict.fromkeys(c.drafters[0] for c in screen.best(singles)))[:MOST_PAIRED]
    pairs = [c for pair in combinations(sorted(best), 2) for c in _widths(inputs, pair, widest)]
    begin("pairs of drafters", NARROWED / 3, NARROWED / 2, len(pairs))
    firsts = screen.fastest_and_leanest([*singles, *pairs], 1)
    varied = [replace(first, rows=rows) for first in firsts for rows in rows_of(inputs)]
    begin("trees", NARROWED / 2, NARROWED, len(varied))
    return screen.fastest_and_leanest([*singles, *pairs, *varied], FINALISTS // 2)


@dataclass(slots=True)
class _Screen:
    """Runs of one seed, each made once."""

    inputs: Inputs
    tokens: int
    runs: Runs
    measures: dict[Candidate, Measures]
    costs_s: dict[Candidate, float]  # to simulate a token
    dropped: dict[Candidate, list[str]]

    def best(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those of whose runs something can be said, the fastest first."""
        wanted = list(dict.fromkeys(candidates))
        new = [c for c in wanted if c not in self.measures and c not in self.dropped]
        here = colocated(self.inputs, self.tokens, SCREEN_SEED)
        scenarios: list[Scenario] = [remote(here, self.inputs, candidate) for candidate in new]
        for candidate, (measures, seconds) in zip(new, self.runs.measure(scenarios), strict=True):
            self.costs_s[candidate] = seconds / self.tokens
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
