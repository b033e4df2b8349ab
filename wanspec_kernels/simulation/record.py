"""Record: what a run did, pass by pass and request by request."""

from dataclasses import dataclass, field

from wanspec_kernels.engine.statistics import Statistics


@dataclass(frozen=True, slots=True)
class RequestRun:
    """One request from its arrival to its last token."""

    token_ids: list[int]
    expected_ids: list[int]  # what the target alone says
    elapsed_ms: float
    token_ms: list[float]  # of each token: its share of the round that brought it
    statistics: Statistics


@dataclass(frozen=True, slots=True)
class PassRun:
    """One pass of the target."""

    began_ms: float
    ended_ms: float
    requests: int  # that took part
    rows: int
    tokens: int  # committed
    home_passes: int  # before it, since the last one


@dataclass(slots=True)
class Record:
    """Of one run; it is complete once the run has ended."""

    runs: list[RequestRun] = field(default_factory=list)
    passes: list[PassRun] = field(default_factory=list)
    first_finish_ms: float | None = None  # None: no request has ended
    busy_ms: float = 0.0  # of the accelerators where the target runs
    up_messages: list[int] = field(default_factory=list)  # of each link
    up_bytes: list[int] = field(default_factory=list)
    down_bytes: list[int] = field(default_factory=list)
    nodes_received: int = 0
    ended_ms: float = 0.0


@dataclass(slots=True)
class Progress:
    """One request's tokens as they come."""

    arrived_ms: float
    last_ms: float
    token_ids: list[int] = field(default_factory=list)
    token_ms: list[float] = field(default_factory=list)

    def commit(self, token_ids: tuple[int, ...], now: float) -> None:
        took_ms, self.last_ms = now - self.last_ms, now
        self.token_ids += token_ids
        self.token_ms += [took_ms / len(token_ids)] * len(token_ids)

    def run(self, text: list[int], statistics: Statistics) -> RequestRun:
        return RequestRun(
            self.token_ids,
            text[: len(self.token_ids)],
            self.last_ms - self.arrived_ms,
            self.token_ms,
            statistics,
        )
