"""What becomes of requests and passes, as events; times are in ms of the engine's clock."""

from dataclasses import dataclass
from typing import Literal

from wanspec_kernels.engine.plan import Verdict
from wanspec_kernels.engine.statistics import Statistics
from wanspec_kernels.events import Event

FinishReason = Literal["length", "stop", "deadline", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class Submitted(Event):
    """A request was taken into the queue."""

    request: int
    prompt_tokens: int
    at_ms: float


@dataclass(frozen=True, slots=True)
class Admitted(Event):
    """A request has pages, for the first time or again, and takes part in passes from now on."""

    request: int
    at_ms: float


@dataclass(frozen=True, slots=True)
class Preempted(Event):
    """A request gave its pages to those before it, and waits to be admitted again."""

    request: int
    at_ms: float


@dataclass(frozen=True, slots=True)
class Waited(Event):
    """The target was idle for drafts that were due, and its next pass is given out now."""

    ms: float  # since it fell free, drafting at home included
    at_ms: float


@dataclass(frozen=True, slots=True)
class PassBegan(Event):
    """The device has begun a pass of the target."""

    requests: tuple[int, ...]
    rows: int
    at_ms: float


@dataclass(frozen=True, slots=True)
class PassEnded(Event):
    """A pass of the target has its verdicts, which are committed next."""

    requests: tuple[int, ...]
    rows: int
    ms: float  # since it began
    at_ms: float


@dataclass(frozen=True, slots=True)
class PassFailed(Event):
    """A pass of the target raised, and ended those that took part in it."""

    requests: tuple[int, ...]
    at_ms: float


@dataclass(frozen=True, slots=True)
class HomeBegan(Event):
    """A draft pass at home was asked for."""

    requests: tuple[int, ...]
    at_ms: float


@dataclass(frozen=True, slots=True)
class HomeEnded(Event):
    """A draft pass at home has ended."""

    requests: tuple[int, ...]
    ms: float  # since it was asked for
    at_ms: float


@dataclass(frozen=True, slots=True)
class Committed(Event):
    """A request's text went on."""

    request: int
    token_ids: tuple[int, ...]
    sources: tuple[int | None, ...]  # of each token: who drafted it; None: the target's own
    verdict: Verdict  # It may go on past the text's end.


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """A request has ended; nothing more is committed to it."""

    request: int
    reason: FinishReason
    statistics: Statistics


News = Committed | Finished
"""What whoever reads a request's text has to hear; the scheduler also returns it."""
