"""Study: candidates narrowed down on one seed, and the best of them measured on others."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from wanspec_kernels.planning.candidates import Candidate, Job, colocated, policies_of, run
from wanspec_kernels.planning.errors import UnsupportedError
from wanspec_kernels.planning.inputs import Inputs
from wanspec_kernels.planning.support import drafter_refusals, refusals, rows_of, widths_of
from wanspec_kernels.simulation.measures import Baseline, Measures, best_tree

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]

SCREEN_SEED = 0
SCREEN_SHARE = 0.5  # of the tokens
SCREEN_MARGIN = 0.85  # of what links and verifier take: other texts may ask for more
MOST_PAIRED = 3  # drafters
FINALISTS = 4


@dataclass(frozen=True, slots=True)
class Study:
    """What was run. Measures of the finalists are by seed, in the order of `seeds`."""

    seeds: tuple[int, ...]
    tokens: int
    baseline: Baseline | None  # co-located speculation at its best; None: there is no home drafter
    colocated: tuple[Measures, ...]  # its measures; of the target alone where there is none
    plain: tuple[Measures, ...]  # the target alone
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
    baseline = None
    if inputs.home is not None:
        baseline = best_tree(colocated(inputs, screen.tokens, SCREEN_SEED))
    progress("the best of them, on other texts")
    numbers = tuple(range(SCREEN_SEED + 1, SCREEN_SEED + 1 + seeds))
    rows: list[tuple[Candidate | None, Baseline | None]] = [(None, None), (None, baseline)]
    rows += [(candidate, None) for candidate in finalists]
    jobs = [Job(inputs, c, b, tokens, number) for c, b in rows for number in numbers]
    results = list(mapped(run, jobs))
    plain, beside, *by_row = (tuple(results[i : i + seeds]) for i in range(0, len(results), seeds))
    measured = dict(zip(finalists, by_row, strict=True))
    dropped = screen.dropped | {
        candidate: reasons
        for candidate, runs in measured.items()
        if (reasons := candidate.refusals(inputs, max(runs, key=lambda m: m.up_mbit)))
    }
    kept = {c: runs for c, runs in measured.items() if c not in dropped}
    if not kept:
        raise UnsupportedError([reason for reasons in dropped.values() for reason in reasons])
    return Study(numbers, tokens, baseline, beside, plain, kept, refused, dropped)


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
    first = screen.best([*singles, *pairs])[0]
    progress("trees and policies")
    varied = [
        replace(first, rows=rows, policy=policy)
        for rows in rows_of(inputs)
        for policy in policies_of(inputs)
    ]
    return screen.best([*singles, *pairs, *varied])[:FINALISTS]


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
        jobs = [Job(self.inputs, c, None, self.tokens, SCREEN_SEED) for c in new]
        for candidate, measures in zip(new, self.mapped(run, jobs), strict=True):
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
        return sorted(kept, key=lambda c: (self.measures[c].latency_ms, len(c.drafters)))


def _widths(inputs: Inputs, drafters: tuple[int, ...], rows: int) -> list[Candidate]:
    """A candidate for each width that all of these can be asked for."""
    widths = widths_of(inputs, [inputs.drafters[index] for index in drafters])
    return [Candidate(drafters, width, rows) for width in widths]
