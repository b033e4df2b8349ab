"""Scenario: everything that decides a run; the same scenario and seed give the same run."""

from dataclasses import dataclass, field, replace

import numpy as np

from drafter.growth import GrowthShape
from drafter.home import HOME_SHAPE
from wanspec_kernels.engine.request import Limits
from wanspec_kernels.engine.scheduler import SchedulerLimits
from wanspec_kernels.simulation.link import LinkProfile
from wanspec_kernels.simulation.trace import Trace


@dataclass(frozen=True, slots=True)
class Machine:
    """A model's time for a pass: so much for the first row, so much for each one more.

    Or as measured, (rows, ms) by rising rows: what lies between two is interpolated, and what lies
    past them takes as long as the nearest. A token of the requests' contexts takes `context_ms`.
    """

    pass_ms: float
    row_ms: float = 0.0
    measured: tuple[tuple[float, float], ...] = ()
    context_ms: float = 0.0

    def time_ms(self, rows: int, context: int = 0) -> float:
        if self.measured:
            known, times_ms = zip(*self.measured, strict=True)
            rows_ms = float(np.interp(rows, known, times_ms))
        else:
            rows_ms = self.pass_ms + self.row_ms * max(0, rows - 1)
        return rows_ms + self.context_ms * context

    def shared(self, requests: int) -> "Machine":
        """As one of so many requests sees it when all are in step, each with as many rows."""
        return replace(
            self,
            row_ms=requests * self.row_ms,
            measured=tuple((rows / requests, ms) for rows, ms in self.measured),
            context_ms=requests * self.context_ms,
        )


REMOTE_SHAPE = GrowthShape.wide()


def shape_of(rows: int, requests: int) -> GrowthShape:
    """Of a remote drafter whose passes expand so many nodes, shared among its requests."""
    return replace(REMOTE_SHAPE, width=max(1, rows // requests))


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
    shares_drafters: bool = False  # They have seats for one each, or one more; else for all.
    target: Machine = field(default_factory=lambda: Machine(30.0))
    home: Machine | None = field(default_factory=lambda: Machine(3.0))
    # Home drafts on the target's accelerator: a pass of the one waits for the other's end.
    shares_accelerator: bool = True
    home_shape: GrowthShape = HOME_SHAPE
    limits: Limits = field(default_factory=lambda: Limits(max_rows=64))
    batch: SchedulerLimits = field(default_factory=SchedulerLimits)
    requests: int = 1
    arrivals_ms: tuple[float, ...] = ()  # of the requests, in order; those left out come at 0
    context: int = 0  # tokens before each request's text, which passes read and nobody writes
    tokens: int = 1000  # a request
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.arrivals_ms) > self.requests:
            raise ValueError(
                f"arrivals_ms: expected at most {self.requests}, one a request, got "
                f"{len(self.arrivals_ms)}"
            )
