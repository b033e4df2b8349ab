"""Scenario: everything that decides a run; the same scenario and seed give the same run."""

from dataclasses import dataclass, field, replace

import numpy as np

from drafter.growth import GrowthShape
from drafter.home import HOME_SHAPE
from wanspec_kernels.control.policies import ExpectedGain
from wanspec_kernels.control.policy import Policy
from wanspec_kernels.engine.request import Limits
from wanspec_kernels.simulation.link import LinkProfile
from wanspec_kernels.simulation.trace import Trace


@dataclass(frozen=True, slots=True)
class Machine:
    """A model's time for a pass: so much for the first row, so much for each one more.

    Or as measured, (rows, ms) by rising rows: what lies between two is interpolated, and what lies
    past them takes as long as the nearest.
    """

    pass_ms: float
    row_ms: float = 0.0
    measured: tuple[tuple[float, float], ...] = ()

    def time_ms(self, rows: int) -> float:
        if self.measured:
            known, times_ms = zip(*self.measured, strict=True)
            return float(np.interp(rows, known, times_ms))
        return self.pass_ms + self.row_ms * max(0, rows - 1)

    def shared(self, requests: int) -> "Machine":
        """As one of so many requests sees it when all are in step, each with as many rows."""
        return replace(
            self,
            row_ms=requests * self.row_ms,
            measured=tuple((rows / requests, ms) for rows, ms in self.measured),
        )


REMOTE_SHAPE = GrowthShape.wide()


@dataclass(frozen=True, slots=True)
class DrafterProfile:
    link: LinkProfile
    machine: Machine = field(default_factory=lambda: Machine(4.0))
    shape: GrowthShape = REMOTE_SHAPE
    max_nodes: int = 2048
    # Of this drafter's own model along the texts of the scenario's trace; None: that trace.
    trace: Trace | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    trace: Trace
    drafters: tuple[DrafterProfile, ...] = ()
    policy: Policy = field(default_factory=ExpectedGain)
    target: Machine = field(default_factory=lambda: Machine(30.0))
    home: Machine | None = field(default_factory=lambda: Machine(3.0))
    home_shape: GrowthShape = HOME_SHAPE
    limits: Limits = field(default_factory=lambda: Limits(max_rows=64))
    max_batch: int = 1024  # requests of one pass of the target, or of the home drafter
    gather_passes: float = 0.4  # of the target, that it waits for requests which are not ready
    requests: int = 1
    tokens: int = 1000  # a request
    seed: int = 0
