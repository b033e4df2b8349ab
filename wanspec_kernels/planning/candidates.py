"""Candidates: drafters and trees, as a scenario of the simulator."""

from dataclasses import dataclass, replace

from wanspec_kernels.engine.request import Limits
from wanspec_kernels.planning.inputs import Inputs
from wanspec_kernels.planning.support import link_profile, rows_of, run_refusals
from wanspec_kernels.simulation.measures import Measures
from wanspec_kernels.simulation.scenario import REMOTE_SHAPE, DrafterProfile, Scenario

NODES_A_WIDTH = 16  # a drafter's tree keeps so many times what a pass expands


@dataclass(frozen=True, slots=True)
class Candidate:
    drafters: tuple[int, ...]  # indices into the inputs'
    width: int  # nodes that a drafter's pass expands
    rows: int  # of a verified tree

    def names(self, inputs: Inputs) -> tuple[str, ...]:
        return tuple(inputs.drafters[index].name for index in self.drafters)

    def refusals(self, inputs: Inputs, measures: Measures, share: float = 1.0) -> list[str]:
        """`run_refusals` of a run of it, by its narrowest link."""
        links = [link_profile(inputs.drafters[index]) for index in self.drafters]
        return run_refusals(measures, min(link.bandwidth_mbit or 0.0 for link in links), share)


def colocated(inputs: Inputs, tokens: int, seed: int) -> Scenario:
    """No drafter elsewhere, and all rows of a request that the target may be asked."""
    return Scenario(
        inputs.trace,
        target=inputs.target,
        home=inputs.home,
        limits=Limits(max_rows=rows_of(inputs)[-1]),
        requests=inputs.requests,
        tokens=tokens,
        seed=seed,
    )


def remote(base: Scenario, inputs: Inputs, candidate: Candidate) -> Scenario:
    """A candidate's drafters and tree beside what is co-located."""
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
        limits=replace(base.limits, max_rows=candidate.rows),
    )
