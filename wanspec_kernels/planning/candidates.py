"""Candidates: drafters, tree and policy, as a scenario of the simulator."""

from dataclasses import dataclass, replace

from wanspec_kernels.control.policies import AlwaysLocal, EntropyGate, ExpectedGain, NeverLocal
from wanspec_kernels.control.policy import Policy
from wanspec_kernels.engine.request import Limits
from wanspec_kernels.planning.inputs import Inputs
from wanspec_kernels.planning.support import link_profile, rows_of, run_refusals
from wanspec_kernels.simulation.measures import Baseline, Measures
from wanspec_kernels.simulation.scenario import REMOTE_SHAPE, DrafterProfile, Scenario

NODES_A_WIDTH = 16  # a drafter's tree keeps so many times what a pass expands
POLICIES: dict[str, Policy] = {
    "expected-gain": ExpectedGain(),
    "entropy-gate": EntropyGate(passes=8),
    "never-local": NeverLocal(),
}


def policies_of(inputs: Inputs) -> list[str]:
    """With a drafter at home, only what falls back on it when the others leave."""
    with_home = ["expected-gain", "entropy-gate"]
    return with_home if inputs.home is not None else ["expected-gain", "never-local"]


@dataclass(frozen=True, slots=True)
class Candidate:
    drafters: tuple[int, ...]  # indices into the inputs'
    width: int  # nodes that a drafter's pass expands
    rows: int  # of a verified tree
    policy: str = "expected-gain"

    def names(self, inputs: Inputs) -> tuple[str, ...]:
        return tuple(inputs.drafters[index].name for index in self.drafters)

    def refusals(self, inputs: Inputs, measures: Measures, share: float = 1.0) -> list[str]:
        """`run_refusals` of a run of it, by its narrowest link."""
        links = [link_profile(inputs.drafters[index]) for index in self.drafters]
        return run_refusals(measures, min(link.bandwidth_mbit or 0.0 for link in links), share)


def colocated(inputs: Inputs, tokens: int, seed: int) -> Scenario:
    """No drafter elsewhere, the default policy, and all rows that the target may be asked."""
    return Scenario(
        inputs.trace,
        target=inputs.target,
        home=inputs.home,
        limits=Limits(max_rows=rows_of(inputs)[-1]),
        requests=inputs.requests,
        tokens=tokens,
        seed=seed,
    )


def fixed(base: Scenario, best: Baseline) -> Scenario:
    """Co-located speculation of fixed passes and shape."""
    return replace(base, policy=AlwaysLocal(best.passes), home_shape=best.shape)


def in_step(base: Scenario) -> Scenario:
    """One of the requests, if an engine drafts for all of them at once and then verifies all.

    The simulator's own requests fall out of step and wait for each other's passes, which is no
    baseline to be proud of beating.
    """
    assert base.home is not None
    target, home = base.target.shared(base.requests), base.home.shared(base.requests)
    return replace(base, target=target, home=home, requests=1)


def remote(base: Scenario, inputs: Inputs, candidate: Candidate) -> Scenario:
    """A candidate's drafters, tree and policy beside what is co-located."""
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
