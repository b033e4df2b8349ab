"""Candidates: drafters, tree and policy, as a scenario of the simulator."""

from dataclasses import dataclass, replace

from wanspec_kernels.planning.inputs import Inputs
from wanspec_kernels.planning.support import link_profile, rows_of, run_refusals
from wanspec_kernels.simulation.measures import Baseline, Measures, measure
from wanspec_kernels.simulation.scenario import REMOTE_SHAPE, DrafterProfile, Scenario
from wanspec_kernels.verifier.generation import Limits
from wanspec_kernels.verifier.policies import AlwaysLocal, EntropyGate, ExpectedGain, NeverLocal
from wanspec_kernels.verifier.policy import Policy

NODES_A_WIDTH = 16  # a drafter's tree keeps so many times what a pass expands
POLICIES: dict[str, Policy] = {
    "expected gain": ExpectedGain(),
    "entropy gate": EntropyGate(passes=8),
    "never local": NeverLocal(),
}


def policies_of(inputs: Inputs) -> list[str]:
    """With a drafter at home, only what falls back on it when the others leave."""
    with_home = ["expected gain", "entropy gate"]
    return with_home if inputs.home is not None else ["expected gain", "never local"]


@dataclass(frozen=True, slots=True)
class Candidate:
    drafters: tuple[int, ...]  # indices into the inputs'
    width: int  # nodes that a drafter's pass expands
    rows: int  # of a verified tree
    policy: str = "expected gain"

    def names(self, inputs: Inputs) -> tuple[str, ...]:
        return tuple(inputs.drafters[index].name for index in self.drafters)

    def refusals(self, inputs: Inputs, measures: Measures, share: float = 1.0) -> list[str]:
        """`run_refusals` of a run of it, by its narrowest link."""
        links = [link_profile(inputs.drafters[index]) for index in self.drafters]
        return run_refusals(measures, min(link.bandwidth_mbit or 0.0 for link in links), share)


@dataclass(frozen=True, slots=True)
class Job:
    """One run: a candidate, co-located speculation, or the target alone (neither)."""

    inputs: Inputs
    candidate: Candidate | None
    baseline: Baseline | None
    tokens: int
    seed: int


def run(job: Job) -> Measures:
    base = colocated(job.inputs, job.tokens, job.seed)
    if job.candidate is not None:
        return measure(_scenario(base, job.inputs, job.candidate))
    if job.baseline is not None:
        b = job.baseline
        return measure(replace(base, policy=AlwaysLocal(b.passes), home_shape=b.shape))
    return measure(replace(base, home=None))


def colocated(inputs: Inputs, tokens: int, seed: int) -> Scenario:
    """No drafter elsewhere, and as many rows as the target was measured with and may be asked."""
    return Scenario(
        inputs.trace,
        target=inputs.target,
        home=inputs.home,
        limits=Limits(max_rows=rows_of(inputs)[-1]),
        requests=inputs.requests,
        tokens=tokens,
        seed=seed,
    )


def _scenario(base: Scenario, inputs: Inputs, candidate: Candidate) -> Scenario:
    shape = replace(REMOTE_SHAPE, width=candidate.width)
    drafters = [inputs.drafters[index] for index in candidate.drafters]
    return replace(
        base,
        drafters=tuple(
            DrafterProfile(
                link_profile(drafter),
                drafter.machine,
                shape,
                NODES_A_WIDTH * candidate.width,
                drafter.trace,
            )
            for drafter in drafters
        ),
        policy=POLICIES[candidate.policy],
        limits=replace(base.limits, max_rows=candidate.rows),
    )
