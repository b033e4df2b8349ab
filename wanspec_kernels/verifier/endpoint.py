"""Endpoint: the socket that drafters dial, and a session for each of them."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from wanspec_kernels.keys import AllowList, Authenticator, Secret, secure_server
from wanspec_kernels.protocol import (
    MAX_MESSAGE_BYTES,
    Draft,
    Error,
    ErrorCode,
    Hello,
    Message,
    Open,
    ProtocolError,
    UnsupportedVersion,
    decode,
    encode,
)
from wanspec_kernels.verifier.generation import Generation
from wanspec_kernels.verifier.pool import Kind
from wanspec_kernels.verifier.refusals import Refusals
from wanspec_kernels.verifier.session import Session, SessionConfig, State

logger = logging.getLogger(__name__)

MESSAGES_A_TURN = 16  # received before the loop's other tasks get theirs
OVER_RATE_PAUSE_S = 0.002  # after a turn with messages past their rate; TCP holds the rest back
LINGER_MS = 200
# A handshake that ends before it says whose key it is: the peer has another server key than ours,
# or speaks another protocol.
NO_HANDSHAKE = (
    "the encrypted handshake failed: the peer's --server-key is not this verifier's NAME.key, or "
    "it is no drafter"
)
HANDSHAKE_FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    session: SessionConfig = field(default_factory=SessionConfig)
    max_sessions: int = 64
    quarantine_ms: float = 60_000.0
    send_queue: int = 256  # messages, for each drafter; more are dropped and counted
    receive_queue: int = 64  # messages, from each drafter; then TCP holds it back
    # From each key, whatever its sessions; past it they are dropped unread. Twice as many in a
    # burst. A drafter sends a DRAFT a pass of its model, or several: of one request that it expands
    # 128 nodes of a pass, up to 900 a second.
    max_messages_per_s: float = 1000.0


class _Allowance:
    """Messages that a key may still send: `rate` more each second, twice that at most."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate, self._left, self._now = rate, 2 * rate, now

    def take(self, now: float) -> bool:
        earned = (now - self._now) * self._rate / 1000.0
        self._left, self._now = min(self._left + earned, 2 * self._rate), now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Endpoint:
    """A CURVE-secured ROUTER for enrolled drafters only.

    While a generation is attached, drafters are kept up to its committed text and their drafts are
    offered to it; `on_offer` is called after one that may matter, and `on_leave` with the source of
    a drafter that has gone. Nothing that a drafter sends raises past its session.
    """

    def __init__(
        self,
        bind: str,
        *,
        secret: Secret,
        allowed: AllowList,
        vocabulary: bytes,
        config: EndpointConfig,
        on_offer: Callable[[], None],
        on_leave: Callable[[int], None],
    ) -> None:
        self.config = config
        self.counters: Counter[str] = Counter()
        self.refusals = Refusals()
        self.address = ""
        self.source_names: dict[int, str] = {}  # of those asked to draft for the generation
        self._bind, self._secret, self._allowed = bind, secret, allowed
        self._vocabulary = vocabulary
        self._on_offer, self._on_leave = on_offer, on_leave
        self._generation: Generation | None = None
        self._sessions: dict[bytes, Session] = {}  # by routing id; one a key
        self._allowances: dict[str, _Allowance] = {}  # by key: as many as were ever enrolled
        self._source_numbers = count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._context: zmq.asyncio.Context | None = None
        self._authenticator: Authenticator | None = None
        self._socket: zmq.asyncio.Socket | None = None
        self._monitor: zmq.asyncio.Socket | None = None

    @property
    def sessions(self) -> list[Session]:
        """Connections that said a valid HELLO, quarantined ones included."""
        return list(self._sessions.values())

    @property
    def num_refused(self) -> int:
        """Handshakes refused: the key is not enrolled, or there was none."""
        return self._authenticator.num_refused if self._authenticator else 0

    async def start(self) -> None:
        """Bind, and serve from tasks of the running loop.

        Raises:
            OSError: the address is no good, or taken.
        """
        try:
            self._start()
        except zmq.ZMQError as error:
            await self.close()
            raise OSError(f"cannot bind {self._bind}: {error.strerror}") from None

    def _start(self) -> None:
        self._context = zmq.asyncio.Context()
        self._authenticator = Authenticator(self._context, self._allowed, self._on_refused)
        self._authenticator.start()
        socket = self._socket = self._context.socket(zmq.ROUTER)
        secure_server(cast("zmq.Socket[bytes]", socket), self._secret)
        socket.router_mandatory = True
        socket.linger = LINGER_MS
        socket.sndhwm = self.config.send_queue
        socket.rcvhwm = self.config.receive_queue
        # What is a little too large is read and answered; what is larger costs the connection.
        socket.maxmsgsize = 2 * MAX_MESSAGE_BYTES
        socket.heartbeat_ivl = 10_000
        socket.heartbeat_timeout = 30_000
        monitor = self._monitor = socket.get_monitor_socket(HANDSHAKE_FAILED)
        socket.bind(self._bind)
        self.address = socket.get_string(zmq.LAST_ENDPOINT)
        self._tasks = [
            asyncio.create_task(self._receive(socket), name="receive"),
            asyncio.create_task(self._beat(), name="heartbeat"),
            asyncio.create_task(self._watch(monitor), name="handshakes"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        if self._authenticator is not None:
            await self._authenticator.close()
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close()
        if self._monitor is not None:
            self._monitor.close(linger=0)
        if self._context is not None:
            self._context.term()
        self._socket = self._monitor = self._context = self._authenticator = None

    def attach(self, generation: Generation) -> None:
        self._generation = generation
        self.source_names = {}
        self.update_sessions()

    def detach(self, reason: str) -> None:
        """End the generation's request at every drafter."""
        if self._generation is None:
            return
        for routing_id, session in list(self._sessions.items()):
            for message in session.close_request(self._generation.number, reason):
                self._send(routing_id, message)
        self._generation = None

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        over_rate = 0
        for number in count(1):
            frames = await socket.recv_multipart(copy=False)
            try:
                self._on_frames(frames)
            except Exception:
                # Ours is the fault, but it must not end the service.
                self.counters["internal_errors"] += 1
                logger.exception("a message could not be handled")
            if number % MESSAGES_A_TURN == 0:
                before, over_rate = over_rate, self.counters["over_rate"]
                await asyncio.sleep(OVER_RATE_PAUSE_S if over_rate > before else 0)

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        while True:
            parse_monitor_message(await monitor.recv_multipart())
            self.counters["handshakes_failed"] += 1
            self.refusals.add("somebody", NO_HANDSHAKE)

    def _on_refused(self, address: str, key: str) -> None:
        self.refusals.add(
            f"{address}, key {key or 'none'}",
            f"this key is not enrolled: {self._allowed.folder} has no NAME.key file with it",
        )

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.config.session.heartbeat_ms / 4000)
            now = now_ms()
            for routing_id, session in list(self._sessions.items()):
                for message in session.tick(now):
                    self._send(routing_id, message)
                if session.state is State.ENDED:
                    self._drop(routing_id, "dead")
                elif session.state is State.QUARANTINED and not self._in_quarantine(session):
                    self._drop(routing_id, "served_quarantine")
            self.update_sessions()

    def _on_frames(self, frames: list[zmq.Frame]) -> None:
        now = now_ms()
        payload = frames[-1]
        key = str(payload.get("User-Id"))
        routing_id = frames[0].bytes
        session = self._sessions.get(routing_id)
        if session is not None and session.key != key:
            # A routing id is free again once its owner has gone, for any enrolled key.
            self._drop(routing_id, "routing_id_reused")
            session = None
        self.counters["received"] += 1
        self.counters["bytes_received"] += sum(len(frame) for frame in frames[1:])
        if key not in self._allowances:
            self._allowances[key] = _Allowance(self.config.max_messages_per_s, now)
        if not self._allowances[key].take(now):
            self.counters["over_rate"] += 1
            return
        try:
            if len(frames) != 2:
                raise ProtocolError(f"message: expected 1 frame, got {len(frames) - 1}")
            message = decode(payload.bytes)
        except ProtocolError as error:
            self._on_malformed(routing_id, key, session, error)
            return
        if isinstance(message, Hello):
            self._on_hello(routing_id, key, message, now)
        elif session is None:
            self.counters["before_hello"] += 1
            if not isinstance(message, Error):
                reason = f"expected HELLO first, got {type(message).__name__}"
                self._send(routing_id, Error.of(ErrorCode.UNEXPECTED, reason))
        else:
            reaction = session.on_message(message, now)
            for reply in reaction.send:
                self._send(routing_id, reply)
            if session.state is State.QUARANTINED:
                self._retire(session)
            elif reaction.draft is not None:
                self._on_draft(routing_id, session, reaction.draft, now)

    def _on_malformed(
        self, routing_id: bytes, key: str, session: Session | None, error: ProtocolError
    ) -> None:
        self.counters["malformed"] += 1
        if isinstance(error, UnsupportedVersion):
            self.refusals.add(self._name_of(key), f"version: {error}")
            self._send(routing_id, Error.of(ErrorCode.VERSION, error))
        elif session is None:
            self._send(routing_id, Error.of(ErrorCode.MALFORMED, error))
        else:
            for reply in session.malformed(str(error)):
                self._send(routing_id, reply)
            if session.state is State.QUARANTINED:
                self._retire(session)

    def _on_hello(self, routing_id: bytes, key: str, hello: Hello, now: float) -> None:
        same_key = [(r, s) for r, s in self._sessions.items() if s.key == key]
        for _, session in same_key:
            if self._in_quarantine(session):
                self.counters["hello_in_quarantine"] += 1
                reason = f"quarantined: {session.end_reason}"
                self.refusals.add(self._name(session), reason)
                self._send(routing_id, Error.of(ErrorCode.MALFORMED, reason))
                return
        if not same_key and len(self._sessions) >= self.config.max_sessions:
            self.counters["sessions_refused"] += 1
            reason = f"expected at most {self.config.max_sessions} drafters"
            self.refusals.add(self._name_of(key), f"capacity: {reason}")
            self._send(routing_id, Error.of(ErrorCode.CAPACITY, reason))
            return
        session = Session(
            next(self._source_numbers),
            key,
            vocabulary=self._vocabulary,
            now=now,
            opens_after=now + self.config.session.reopen_ms if same_key else now,
            config=self.config.session,
        )
        for reply in session.on_message(hello, now).send:
            if isinstance(reply, Error):
                self.refusals.add(self._name(session), reply.message)
            self._send(routing_id, reply)
        if not session.ready:
            self.counters["hello_refused"] += 1
            return
        for old_routing_id, _ in same_key:
            if old_routing_id != routing_id:
                reason = "the same key said HELLO on another connection"
                self._send(old_routing_id, Error.of(ErrorCode.SUPERSEDED, reason))
            self._drop(old_routing_id, "superseded")
        self._sessions[routing_id] = session
        logger.info("drafter %s (%s) joined", self._name(session), hello.model)
        for message in session.tick(now):
            self._send(routing_id, message)
        self.update_sessions()

    def _on_draft(self, routing_id: bytes, session: Session, draft: Draft, now: float) -> None:
        generation = self._generation
        if generation is None:
            self.counters["drafts_without_request"] += 1
            return
        outcome = generation.offer(session.source, draft, now)
        if outcome.kind is Kind.INVALID:
            self._quarantine(routing_id, session, outcome.reason)
        elif generation.waiting:
            self._on_offer()

    def update_sessions(self) -> None:
        """Send what brings every drafter up to the generation's committed text."""
        generation = self._generation
        if generation is None or generation.done:
            return
        now = now_ms()
        for routing_id, session in list(self._sessions.items()):
            if session.source in generation.offenders:
                self._quarantine(routing_id, session, generation.offenders.pop(session.source))
        for routing_id, session in list(self._sessions.items()):
            for message in session.update(generation, now):
                if not self._send(routing_id, message):
                    session.failed(message, now)
                    continue
                session.sent(message, now)
                if isinstance(message, Open):
                    generation.enrol(session.source, session.round_trip_ms)
                    self.source_names[session.source] = self._name(session)

    def _quarantine(self, routing_id: bytes, session: Session, reason: str) -> None:
        for message in session.quarantine(reason):
            self._send(routing_id, message)
        self._retire(session)

    def _in_quarantine(self, session: Session) -> bool:
        served_ms = now_ms() - session.ended_ms
        return session.state is State.QUARANTINED and served_ms < self.config.quarantine_ms

    def _retire(self, session: Session) -> None:
        self._on_leave(session.source)
        if self._generation is not None:
            self._generation.retire(session.source)

    def _drop(self, routing_id: bytes, reason: str) -> None:
        session = self._sessions.pop(routing_id, None)
        if session is None:
            return
        self.counters[f"sessions_{reason}"] += 1
        session.end(reason)
        self._retire(session)
        logger.info("drafter %s left: %s", self._name(session), session.end_reason)

    def _send(self, routing_id: bytes, message: Message) -> bool:
        if self._socket is None:
            return False
        data = encode(message)
        future = cast(
            "asyncio.Future[Any]",
            self._socket.send_multipart([routing_id, data], flags=zmq.NOBLOCK),
        )
        # With NOBLOCK it is done already.
        error = future.exception()
        if error is None:
            self.counters["sent"] += 1
            self.counters["bytes_sent"] += len(data)
            return True
        self.counters["sends_dropped"] += 1
        if isinstance(error, zmq.ZMQError) and error.errno == zmq.EHOSTUNREACH:
            self._drop(routing_id, "disconnected")
        return False

    def _name(self, session: Session) -> str:
        return self._name_of(session.key)

    def _name_of(self, key: str) -> str:
        return self._allowed.name_of(key.encode()) or key


def check_bind(address: str) -> None:
    """Bind an address and let it go again: what is wrong with it shows before a model is loaded.

    Somebody may take it in between; then `Endpoint.start` says so.

    Raises:
        OSError: the address is no good, or taken.
    """
    context = zmq.Context()
    try:
        with context.socket(zmq.ROUTER) as socket:
            socket.linger = 0
            socket.ipv6 = address.startswith(("tcp://*:", "tcp://["))
            socket.bind(address)
    except zmq.ZMQError as error:
        raise OSError(
            f"expected a free address such as tcp://*:5555, got {address}: {error.strerror}"
        ) from None
    finally:
        context.term()


def now_ms() -> float:
    return time.monotonic() * 1000
