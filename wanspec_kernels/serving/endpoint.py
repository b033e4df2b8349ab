"""Endpoint: the socket that drafters dial, and a session for each of them."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

import zmq
import zmq.asyncio

from wanspec_kernels.drafts.admission import Admission, AdmissionConfig, Refusal
from wanspec_kernels.drafts.pool import Kind
from wanspec_kernels.drafts.refusals import Refusals
from wanspec_kernels.drafts.session import Session, SessionConfig, State
from wanspec_kernels.engine.generation import Generation
from wanspec_kernels.serving.receiving import receive
from wanspec_kernels.wire import (
    MAX_MESSAGE_BYTES,
    MAX_PLAIN_BYTES,
    Draft,
    Error,
    ErrorCode,
    Hello,
    Message,
    Open,
    ProtocolError,
    UnsupportedVersion,
    decode_frame,
    encode_frame,
)
from wanspec_kernels.wire.keys import SILENT_MS, AllowList, Door, Secret

logger = logging.getLogger(__name__)

LINGER_MS = 200
# A handshake that ends before it says whose key it is: the peer has another server key than ours,
# or speaks another protocol.
NO_HANDSHAKE = (
    "the encrypted handshake failed: the peer's --server-key is not this verifier's NAME.key, or "
    "it is no drafter"
)


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    session: SessionConfig = field(default_factory=SessionConfig)
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    max_sessions: int = 64
    send_queue: int = 256  # messages, for each drafter; more are dropped and counted
    receive_queue: int = 64  # messages, from each drafter; then TCP holds it back


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
        self._admission = Admission(config.admission, now_ms())
        self._source_numbers = count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._context: zmq.asyncio.Context | None = None
        self._door: Door | None = None
        self._socket: zmq.asyncio.Socket | None = None

    @property
    def sessions(self) -> list[Session]:
        """Connections that said a valid HELLO."""
        return list(self._sessions.values())

    @property
    def num_refused(self) -> int:
        """Handshakes refused: the key is not enrolled, or there was none."""
        return self._door.num_refused if self._door else 0

    async def start(self) -> None:
        """Bind, and serve from tasks of the running loop.

        Raises:
            OSError: the address is no good, or taken.
        """
        try:
            self._start()
        except OSError:
            await self.close()
            raise

    def _start(self) -> None:
        session = self.config.session
        self._context = zmq.asyncio.Context()
        self._door = Door(
            self._context,
            secret=self._secret,
            allowed=self._allowed,
            silent_ms=max(SILENT_MS, 2 * session.missed_heartbeats * session.heartbeat_ms),
            on_unlisted=self._on_unlisted,
            on_refused=self._on_stranger,
            on_failed=self._on_failed,
        )
        socket = self._socket = self._door.socket
        socket.router_mandatory = True
        socket.linger = LINGER_MS
        socket.sndhwm = self.config.send_queue
        socket.rcvhwm = self.config.receive_queue
        # What is a little too large is read and answered; what is larger costs the connection.
        socket.maxmsgsize = 2 * MAX_MESSAGE_BYTES
        self.address = self._door.open(self._bind)
        self._tasks = [
            asyncio.create_task(self._receive(self._door), name="receive"),
            asyncio.create_task(self._beat(), name="heartbeat"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)  # raises our own cancellation, and not theirs
        self._tasks = []
        if self._door is not None:
            await self._door.close()
        if self._context is not None:
            self._context.term()
        self._socket = self._context = self._door = None

    def attach(self, generation: Generation) -> None:
        self._generation = generation
        # Only draws make a message large; under `match` none has a use.
        draws = generation.request.sampling.rule == "rejection"
        self._admission.max_bytes = MAX_MESSAGE_BYTES if draws else MAX_PLAIN_BYTES
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
        self._admission.max_bytes = MAX_PLAIN_BYTES

    async def _receive(self, door: Door) -> None:
        await receive(
            door.socket,
            self._admission,
            self.counters,
            clock=now_ms,
            admits=door.admits,
            on_message=self._on_message,
            on_refused=self._on_refused,
        )

    def _on_failed(self) -> None:
        self.counters["handshakes_failed"] += 1
        self.refusals.add("somebody", NO_HANDSHAKE)

    def _on_stranger(self, address: str, key: str) -> None:
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
            self.update_sessions()

    def _on_unlisted(self, key: str) -> None:
        reason = "this drafter's key was taken off the verifier's allow-list"
        for routing_id, session in list(self._sessions.items()):
            if session.key != key:
                continue
            if self._generation is not None:
                for message in session.close_request(self._generation.number, reason):
                    self._send(routing_id, message)
            self._send(routing_id, Error.of(ErrorCode.NOT_ENROLLED, reason))
            self._drop(routing_id, "unlisted")

    def _on_refused(self, key: str, frames: list[zmq.Frame], refusal: Refusal) -> None:
        if refusal is Refusal.QUARANTINED:
            reason = self._admission.answer(key, now_ms())
            if reason is not None:
                self._send(frames[0].bytes, Error.of(ErrorCode.MALFORMED, reason))

    def _on_message(self, key: str, frames: list[zmq.Frame]) -> None:
        now = now_ms()
        routing_id = frames[0].bytes
        session = self._sessions.get(routing_id)
        if session is not None and session.key != key:
            # A routing id is free again once its owner has gone, for any enrolled key.
            self._drop(routing_id, "routing_id_reused")
        try:
            if len(frames) != 2:
                raise ProtocolError(f"message: expected 1 frame, got {len(frames) - 1}")
            messages = decode_frame(frames[1].bytes)
        except UnsupportedVersion as error:
            self.refusals.add(self._name_of(key), f"version: {error}")
            self._send(routing_id, Error.of(ErrorCode.VERSION, error))
            self.counters["other_version"] += 1
            return
        except ProtocolError as error:
            self._on_malformed(routing_id, key, str(error), now)
            return
        for message in messages:
            if isinstance(message, ProtocolError):
                self._on_malformed(routing_id, key, str(message), now)
            else:
                self._on_one(routing_id, key, message, now)
            if self._admission.is_quarantined(key, now):
                return  # the rest is not read

    def _on_one(self, routing_id: bytes, key: str, message: Message, now: float) -> None:
        session = self._sessions.get(routing_id)
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
            if reaction.malformed:
                self._on_malformed(routing_id, key, reaction.malformed, now)
            elif reaction.draft is not None:
                self._on_draft(session, reaction.draft, now)

    def _on_malformed(self, routing_id: bytes, key: str, reason: str, now: float) -> None:
        self.counters["malformed"] += 1
        self._send(routing_id, Error.of(ErrorCode.MALFORMED, reason))
        if self._admission.malformed(key, now):
            self._quarantine(key, f"too many malformed messages, the last: {reason}")

    def _on_hello(self, routing_id: bytes, key: str, hello: Hello, now: float) -> None:
        same_key = [(r, s) for r, s in self._sessions.items() if s.key == key]
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

    def _on_draft(self, session: Session, draft: Draft, now: float) -> None:
        generation = self._generation
        if generation is None:
            self.counters["drafts_without_request"] += 1
            return
        outcome = generation.offer(session.source, draft, now)
        if outcome.kind is Kind.INVALID:
            self._quarantine(session.key, outcome.reason)
        elif generation.waiting:
            self._on_offer()

    def update_sessions(self) -> None:
        """Send what brings every drafter up to the generation's committed text."""
        generation = self._generation
        if generation is None or generation.done:
            return
        now = now_ms()
        for session in self.sessions:
            if session.source in generation.offenders:
                self._quarantine(session.key, generation.offenders.pop(session.source))
        for routing_id, session in list(self._sessions.items()):
            for message in session.update(generation, now):
                if not self._send(routing_id, message):
                    session.failed(message, now)
                    continue
                session.sent(message, now)
                if isinstance(message, Open):
                    generation.enrol(session.source, session.round_trip_ms)
                    self.source_names[session.source] = self._name(session)

    def _quarantine(self, key: str, reason: str) -> None:
        """Say why, end the key's session, and read nothing of the key for a while."""
        logger.warning("drafter %s is quarantined: %s", self._name_of(key), reason)
        self.refusals.add(self._name_of(key), f"quarantined: {reason}")
        self._admission.quarantine(key, reason, now_ms())
        for routing_id, session in list(self._sessions.items()):
            if session.key == key:
                for message in session.quarantine(reason):
                    self._send(routing_id, message)
                self._drop(routing_id, "quarantined")

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
        data = encode_frame([message])
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


def now_ms() -> float:
    return time.monotonic() * 1000
