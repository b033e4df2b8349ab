"""Verdict: which finalist to use, or none; with intervals over texts and spells of the links."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from wanspec_kernels.planning.candidates import Candidate
from wanspec_kernels.planning.intervals import Interval
from wanspec_kernels.planning.study import Study
from wanspec_kernels.simulation.measures import Measures

SAME = 1.05  # times the latency of co-located speculation: nearly as fast
FEWER = 0.9  # times its draft passes at home: fewer


class Use(StrEnum):
    """What a study shows; "without" is the best that goes without remote drafters."""

    faster = "faster than without remote drafters"
    fewer = "within 5 % of the best without remote drafters, with fewer draft passes at home"
    none = "not better than without remote drafters"
    unclear = "not shown to be better than without remote drafters"


@dataclass(frozen=True, slots=True)
class Expectation:
    """Of one finalist; ratios are to the best without drafters, same texts."""

    latency_ms: Interval
    p95_ms: Interval
    local_passes: Interval
    tokens_per_pass: Interval
    hot_ms: Interval
    drafts_per_s: Interval
    up_mbit: Interval
    latency_ratio: Interval
    passes_ratio: Interval | None  # None: home made none to compare with
    hot_ratio: Interval


@dataclass(frozen=True, slots=True)
class Verdict:
    use: Use
    chosen: Candidate | None
    expectations: dict[Candidate, Expectation]
    here: dict[str, Expectation]  # without any drafter elsewhere


def judge(study: Study) -> Verdict:
    """The fastest; of those that cannot be told from it, the one with the fewest home passes."""
    against = study.here[study.best_here]
    found = {c: expect(runs, against) for c, runs in study.finalists.items()}
    faster = {c: e for c, e in found.items() if e.latency_ratio.high < 1.0}
    fewer = {
        c: e
        for c, e in found.items()
        if e.latency_ratio.high <= SAME and e.passes_ratio and e.passes_ratio.high < FEWER
    }
    good = faster or fewer
    if good:
        use = Use.faster if faster else Use.fewer
        best = min(e.latency_ratio.mean for e in good.values())
        near = {c: e for c, e in good.items() if e.latency_ratio.low <= best}
        chosen = min(
            near, key=lambda c: (round(near[c].local_passes.mean, 2), len(c.drafters), c.width)
        )
    else:
        hopeless = all(e.latency_ratio.low > 1.0 for e in found.values())
        use, chosen = (Use.none if hopeless else Use.unclear), None
    here = {name: expect(runs, against) for name, runs in study.here.items()}
    return Verdict(use, chosen, found, here)


def expect(runs: tuple[Measures, ...], against: tuple[Measures, ...]) -> Expectation:
    def mean(of: Callable[[Measures], float]) -> Interval:
        return Interval.of([of(run) for run in runs])

    def ratio(of: Callable[[Measures], float]) -> Interval:
        # Seed by seed: texts differ more than what is compared.
        return Interval.of([of(a) / of(b) for a, b in zip(runs, against, strict=True)])

    compared = all(b.local_passes for b in against)
    return Expectation(
        latency_ms=mean(lambda m: m.latency_ms),
        p95_ms=mean(lambda m: m.p95_ms),
        local_passes=mean(lambda m: m.local_passes),
        tokens_per_pass=mean(lambda m: m.tokens_per_pass),
        hot_ms=mean(lambda m: m.hot_ms),
        drafts_per_s=mean(lambda m: m.drafts_per_s),
        up_mbit=mean(lambda m: m.up_mbit),
        latency_ratio=ratio(lambda m: m.latency_ms),
        passes_ratio=ratio(lambda m: m.local_passes) if compared else None,
        hot_ratio=ratio(lambda m: m.hot_ms),
    )
