"""Session: the verifier's side of one drafter connection, as a state machine."""

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from wanspec_kernels.wire import (
    MAX_COMMIT_TOKENS,
    MAX_MESSAGE_BYTES,
    MAX_PROMPT_TOKENS,
    Close,
    Commit,
    Draft,
    Error,
    ErrorCode,
    Hello,
    Message,
    Open,
    Ping,
    Pong,
    Welcome,
)
from wanspec_kernels.wire.vocabulary import format_fingerprint

US_PER_MS = 1000
MAX_PINGS_OPEN = 16


@dataclass(frozen=True, slots=True)
class SessionConfig:
    heartbeat_ms: int = 1000  # longest silence; we ping twice as often
    missed_heartbeats: int = 3  # then the drafter is taken for dead
    capacity_retry_ms: float = 5000.0  # until a drafter that was full is asked again
    reopen_ms: float = 200.0  # between two OPENs of one request


class State(Enum):
    NEW = "new"
    READY = "ready"
    ENDED = "ended"


class Progress(Protocol):
    """What a session needs to know of a running request; `Generation` and its pool have it."""

    @property
    def number(self) -> int: ...
    @property
    def token_ids(self) -> list[int]: ...
    @property
    def check(self) -> int: ...
    def max_nodes_of(self, source: int, most: int) -> int: ...
    def open_message(self, max_nodes: int) -> Open: ...


@dataclass(slots=True)
class _Known:
    """What the drafter knows of one request."""

    length: int | None = None  # None: not opened, or what it knows was lost
    max_nodes: int = 0  # asked for
    opened_ms: float | None = None
    declined_ms: float | None = None


@dataclass(slots=True)
class Reaction:
    """What a message led to."""

    send: list[Message] = field(default_factory=list)
    draft: Draft | None = None  # to be offered
    malformed: str = ""  # what is wrong with it, if anything


class Session:
    """Messages in, messages out; `now` is any clock in ms that does not go back.

    The source number, unique to the session, tells its drafts apart. It is the owner who sends:
    what could be sent is reported by `sent`, what could not by `failed`; a drafter that missed a
    COMMIT gets the whole text in a new OPEN. No OPEN is sent before `opens_after`, so that a
    drafter that greets again and again does not get the text each time.
    """

    def __init__(
        self,
        source: int,
        key: str,
        *,
        vocabulary: bytes,
        now: float,
        opens_after: float = float("-inf"),
        config: SessionConfig | None = None,
    ) -> None:
        self.source = source
        self.key = key
        self.config = config or SessionConfig()
        self.state = State.NEW
        self.end_reason = ""
        self.hello: Hello | None = None
        self.counters: Counter[str] = Counter()
        self.round_trip_ms: float | None = None  # smoothed
        self.min_round_trip_ms: float | None = None
        self._vocabulary = vocabulary
        self._known: dict[int, _Known] = {}
        self._heard_ms = now
        self._pinged_ms = float("-inf")
        self._pings: deque[int] = deque(maxlen=MAX_PINGS_OPEN)  # clock readings sent
        self._opens_after_ms = opens_after

    @property
    def ready(self) -> bool:
        return self.state is State.READY

    def on_message(self, message: Message, now: float) -> Reaction:
        self.counters["received"] += 1
        if self.state is State.ENDED:
            self.counters["ignored"] += 1
            return Reaction()
        self._heard_ms = now
        if self.state is State.NEW:
            return self._greet(message, now)
        match message:
            case Draft():
                self.counters["drafts"] += 1
                return Reaction(draft=message)
            case Ping(clock_us):
                return Reaction([Pong(clock_us, _clock_us(now))])
            case Pong(clock_us):
                self._measure(clock_us, now)
            case Error(code, _, request):
                self._on_error(code, request, now)
            case Close(request):
                if request in self._known:
                    self._known[request].length = None
                    self._known[request].declined_ms = float("inf")  # for good
            case _:
                return Reaction(malformed=f"expected a DRAFT, got {type(message).__name__}")
        return Reaction()

    def quarantine(self, reason: str) -> list[Message]:
        """Say why, and ignore the drafter from now on."""
        if self.state is State.ENDED:
            return []
        self.end(f"quarantined: {reason}")
        return [Error.of(ErrorCode.MALFORMED, self.end_reason)]

    def end(self, reason: str) -> None:
        """Ignore the drafter from now on."""
        if self.state is not State.ENDED:
            self.state, self.end_reason = State.ENDED, reason
        self._known.clear()

    def tick(self, now: float) -> list[Message]:
        """PING when one is due; the state is ENDED once the drafter was silent for too long."""
        if not self.ready:
            return []
        silent_ms = now - self._heard_ms
        if silent_ms > self.config.heartbeat_ms * self.config.missed_heartbeats:
            self.end(f"silent for {silent_ms:.0f} ms")
            return []
        if now - self._pinged_ms < self.config.heartbeat_ms / 2:
            return []
        self._pinged_ms = now
        self._pings.append(_clock_us(now))
        round_trip_us = int(US_PER_MS * (self.round_trip_ms or 0.0))
        return [Ping(_clock_us(now), round_trip_us)]

    def update(self, request: Progress, now: float) -> list[Message]:
        """What brings the drafter up to the request's committed text: OPEN, COMMIT or nothing."""
        if not self.ready or self.hello is None:
            return []
        known = self._known.get(request.number)
        length = len(request.token_ids)
        max_nodes = request.max_nodes_of(self.source, self.hello.max_nodes)
        if known is not None and known.length is not None:
            missing = tuple(request.token_ids[known.length :])
            other_tree = known.max_nodes != max_nodes and length <= MAX_PROMPT_TOKENS
            if not other_tree or not self._may_open(known, now):
                if not missing:
                    return []
                if len(missing) <= MAX_COMMIT_TOKENS:
                    return [Commit(request.number, length, missing, request.check)]
        if not self._may_open(known, now):
            return []
        if known is None:
            held = sum(each.declined_ms is None for each in self._known.values())
            if held >= self.hello.max_requests:
                self.counters["over_capacity"] += 1
                return []
        if length > MAX_PROMPT_TOKENS:
            self.counters["too_long"] += 1
            return []
        return [request.open_message(max_nodes)]

    def declined(self, now: float) -> frozenset[int]:
        """Requests that the drafter will not have for now."""
        return frozenset(
            request
            for request, known in self._known.items()
            if known.declined_ms is not None
            and now - known.declined_ms < self.config.capacity_retry_ms
        )

    def knows(self, request: int) -> bool:
        return request in self._known and self._known[request].length is not None

    def sent(self, message: Message, now: float) -> None:
        self.counters["sent"] += 1
        match message:
            case Open(request, token_ids, max_nodes=max_nodes):
                self._known[request] = _Known(len(token_ids), max_nodes, now)
            case Commit(request, length) if request in self._known:
                self._known[request].length = length

    def failed(self, message: Message, now: float) -> None:
        """The message could not be sent and is lost."""
        self.counters["send_failed"] += 1
        match message:
            case Commit(request) if request in self._known:
                self._known[request].length = None
            case Open(request):
                self._known[request] = _Known(opened_ms=now)

    def close_request(self, request: int, reason: str) -> list[Message]:
        known = self._known.pop(request, None)
        if known is None or known.opened_ms is None or not self.ready:
            return []
        return [Close(request, reason)]

    def _greet(self, message: Message, now: float) -> Reaction:
        if not isinstance(message, Hello):
            name = type(message).__name__
            return Reaction([Error.of(ErrorCode.UNEXPECTED, f"expected HELLO first, got {name}")])
        if message.vocabulary != self._vocabulary:
            ours = format_fingerprint(self._vocabulary)
            theirs = format_fingerprint(message.vocabulary)
            self.end("vocabulary")
            reason = f"vocabulary: expected the target's {ours}, got {theirs} of {message.model}"
            return Reaction([Error.of(ErrorCode.VOCABULARY, reason)])
        self.hello = message
        self.state = State.READY
        welcome = Welcome(
            message.clock_us, _clock_us(now), self.config.heartbeat_ms, MAX_MESSAGE_BYTES
        )
        return Reaction([welcome])

    def _on_error(self, code: str, request: int | None, now: float) -> None:
        self.counters[f"error_{code}" if code in set(ErrorCode) else "error_internal"] += 1
        if request not in self._known:
            return
        known = self._known[request]
        known.length = None  # whatever went wrong there, only a new OPEN can mend it
        if code not in (ErrorCode.RESYNC, ErrorCode.UNKNOWN_REQUEST):
            known.declined_ms = now

    def _may_open(self, known: _Known | None, now: float) -> bool:
        if now < self._opens_after_ms:
            return False
        if known is None:
            return True
        config = self.config
        if known.declined_ms is not None and now - known.declined_ms < config.capacity_retry_ms:
            return False
        return known.opened_ms is None or now - known.opened_ms >= config.reopen_ms

    def _measure(self, clock_us: int, now: float) -> None:
        if clock_us not in self._pings:  # a reading that we never sent measures nothing
            self.counters["bad_pongs"] += 1
            return
        self._pings.remove(clock_us)
        sample = now - clock_us / US_PER_MS
        if self.round_trip_ms is None or self.min_round_trip_ms is None:
            self.round_trip_ms = self.min_round_trip_ms = sample
            return
        self.round_trip_ms += 0.125 * (sample - self.round_trip_ms)
        self.min_round_trip_ms = min(self.min_round_trip_ms, sample)


def _clock_us(now: float) -> int:
    return int(now * US_PER_MS)
