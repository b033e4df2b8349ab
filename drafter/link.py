"""Link: the socket of a drafter, its reconnects, and the loop that drafts between messages."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from socket import socketpair

import zmq
from zmq.utils.monitor import recv_monitor_message

from drafter.connection import GREETING_TIMEOUT_US, Backoff, Connection
from drafter.session import Session
from wanspec_kernels.wire import (
    MAX_MESSAGE_BYTES,
    Draft,
    Error,
    ErrorCode,
    Hello,
    Message,
    ProtocolError,
    decode_frame,
    encode_frame,
)
from wanspec_kernels.wire.addresses import Lookup, NotResolved, why_unreachable
from wanspec_kernels.wire.keys import Secret, secure_client

log = logging.getLogger(__name__)

SEND_QUEUE = 64  # messages
RECEIVE_QUEUE = 256
MESSAGES_A_ROUND = 64  # read before the model runs again
LINGER_MS = 300  # for the CLOSEs at the end
LOOKUP_MS = 10_000
CONNECT_MS = 5_000  # then the next address of the name is tried

_LOST_EVENTS = {
    zmq.EVENT_DISCONNECTED: "disconnected",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "the verifier does not accept this key",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "no encrypted verifier of that key answers there",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "no encrypted verifier of that key answers there",
}
_PROGRESS_EVENTS = {
    zmq.EVENT_CONNECTED: "it connects, but no verifier answers",
    zmq.EVENT_HANDSHAKE_SUCCEEDED: "no WELCOME",
}


class Refused(Exception):
    """The verifier will not have this drafter, now or later, or cannot be dialled at all."""


@dataclass
class LinkCounters:
    num_connects: int = 0
    num_malformed: int = 0  # messages received
    num_unsendable: int = 0  # not drafts: the queue was full
    num_too_large: int = 0  # for the peer


class Link:
    """Dials out, and keeps dialling until `stop`.

    One thread: messages are read between passes, so that a commit waits for one pass at most. A
    reconnect is a new socket with a new routing id; the verifier knows a drafter by its key.
    """

    def __init__(
        self,
        session: Session,
        *,
        endpoint: str,
        secret: Secret,
        server_public: bytes,
        vocabulary: bytes,
        model_name: str,
        max_requests: int,
        max_nodes: int,
        backoff: Backoff | None = None,
        greeting_timeout_us: int = GREETING_TIMEOUT_US,
    ) -> None:
        self.counters = LinkCounters()
        self._session = session
        self._endpoint = endpoint
        self._secret = secret
        self._server_public = server_public
        self._about = (vocabulary, model_name, max_requests, max_nodes)
        self._backoff = backoff or Backoff()
        self._greeting_timeout_us = greeting_timeout_us
        self._context = zmq.Context()
        self._stopping = False
        # Not an event: a poll can wait for this beside the socket.
        self._wake_out, self._wake_in = socketpair()
        self._wake_in.setblocking(False)

    def stop(self) -> None:
        """Make `run` say goodbye and return; for signal handlers and other threads."""
        self._stopping = True
        with suppress(OSError):  # it is over already
            self._wake_in.send(b"x")

    def run(self) -> None:
        """Serve until `stop`. Raises Refused."""
        try:
            while not self._stopping:
                reason = self._serve()
                if self._stopping:
                    break
                wait_ms = self._backoff.wait_ms()
                log.warning("%s: %s; again in %.1f s", self._endpoint, reason, wait_ms / 1000)
                self._pause(wait_ms)
        finally:
            self._context.destroy(linger=LINGER_MS)
            self._wake_out.close()
            self._wake_in.close()
            log.info("stopped: %s", self._account())

    def _serve(self) -> str:
        """One connection, to the first of the name's addresses that takes one; why it ended."""
        try:
            with closing(Lookup(self._endpoint)) as lookup:
                self._pause(LOOKUP_MS, lookup)
                endpoints = lookup.endpoints() if not self._stopping else []
        except ValueError as error:
            raise Refused(f"not an address to dial: {error}") from None
        except NotResolved as error:
            return str(error)
        failures = []
        for endpoint in endpoints:
            began_us = _now_us()
            reason = self._serve_connection(endpoint)
            if reason is not None:
                return reason
            if self._stopping:
                break
            late = _now_us() - began_us >= CONNECT_MS * 1000
            why = "nothing answers" if late else why_unreachable(endpoint) or "it could since"
            failures.append(f"{endpoint.removeprefix('tcp://')}: {why}")
        return f"cannot connect ({'; '.join(failures)})"

    def _serve_connection(self, endpoint: str) -> str | None:
        """One connection from HELLO to its end; why it ended, None if it could not be made."""
        socket = self._context.socket(zmq.DEALER)
        # No routing id of ours: the verifier names its connections.
        socket.linger = 0
        socket.sndhwm, socket.rcvhwm = SEND_QUEUE, RECEIVE_QUEUE
        socket.maxmsgsize = MAX_MESSAGE_BYTES
        socket.reconnect_ivl = -1  # reconnects are ours
        socket.connect_timeout = CONNECT_MS
        socket.ipv6 = True  # which dials IPv4 as well
        secure_client(socket, self._secret, self._server_public)
        events = {zmq.EVENT_CLOSED, *_LOST_EVENTS, *_PROGRESS_EVENTS}
        monitor = socket.get_monitor_socket(sum(events))
        self.counters.num_connects += 1
        try:
            connection = Connection(
                self._session,
                Hello(*self._about, clock_us=_now_us()),
                greeting_timeout_us=self._greeting_timeout_us,
            )
            try:
                socket.connect(endpoint)
            except zmq.ZMQError as error:
                raise Refused(f"not an address to dial: {error.strerror}") from None
            self._send(socket, connection, [connection.hello])
            reason = self._converse(socket, monitor, connection)
            if connection.conversed:
                self._backoff.reset()
            return reason
        finally:
            socket.disable_monitor()
            monitor.close()
            socket.close()

    def _converse(
        self, socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes], connection: Connection
    ) -> str | None:
        poller = zmq.Poller()
        poller.register(monitor, zmq.POLLIN)
        poller.register(self._wake_out, zmq.POLLIN)
        while True:
            writable = bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)
            wants = self._session.busy
            waits = not writable and (wants or self._session.num_unsent > 0)
            poller.register(socket, zmq.POLLIN | (zmq.POLLOUT if waits else 0))
            wait_us = 0 if wants and writable else self._wait_us(connection, writable)
            ready = dict(poller.poll(-(-wait_us // 1000)))
            if self._stopping:
                socket.linger = LINGER_MS
                self._send(socket, connection, self._session.close_all("the drafter stops"))
                return "stopped"
            self._receive(socket, connection)
            # Messages first: a refusal says more than the disconnection after it.
            if connection.refused is not None:
                raise Refused(connection.refused)
            if connection.lost is None and monitor in ready:
                event = zmq.Event(recv_monitor_message(monitor)["event"])
                if event == zmq.EVENT_CLOSED:
                    return None
                connection.awaited = _PROGRESS_EVENTS.get(event, connection.awaited)
                connection.lost = _LOST_EVENTS.get(event)
            self._send(socket, connection, connection.tick(_now_us()))
            if connection.lost is not None:
                return connection.lost
            if not writable:
                continue
            if self._session.busy:
                self._send(socket, connection, self._session.step())
            self._send_drafts(socket, connection)

    def _wait_us(self, connection: Connection, writable: bool) -> int:
        """Until there is something to do, if nothing is heard before."""
        unsent, now_us = self._session.num_unsent, _now_us()
        until_us = connection.deadline_us
        if unsent and writable:
            until_us = min(until_us, connection.flow.next_us(unsent, now_us))
        return max(until_us - now_us, 0)

    def _send_drafts(self, socket: zmq.Socket[bytes], connection: Connection) -> None:
        """As many as the link takes; the rest stay where commits prune them."""
        unsent = self._session.num_unsent
        if not unsent:
            return
        allowance = connection.flow.allowance(unsent, _now_us())
        self._send(socket, connection, self._session.drafts(allowance))
        self._send(socket, connection, connection.marker(_now_us()))

    def _receive(self, socket: zmq.Socket[bytes], connection: Connection) -> None:
        for _ in range(MESSAGES_A_ROUND):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                if len(frames) != 1:
                    raise ProtocolError(f"message: expected one frame, got {len(frames)}")
                messages = list(decode_frame(frames[0]))
            except ProtocolError as error:
                messages = [error]
            for message in messages:
                if isinstance(message, ProtocolError):
                    self.counters.num_malformed += 1
                    log.warning("malformed message: %s", message)
                    answers: list[Message] = [Error.of(ErrorCode.MALFORMED, message)]
                else:
                    answers = connection.on_message(message, _now_us())
                self._send(socket, connection, answers)

    def _send(
        self, socket: zmq.Socket[bytes], connection: Connection, messages: Iterable[Message]
    ) -> None:
        """Send without waiting; what cannot be sent is dropped and counted."""
        for message in messages:
            data = encode_frame([message])
            if len(data) > connection.max_message_bytes:
                self.counters.num_too_large += 1
                continue
            try:
                socket.send(data, zmq.NOBLOCK)
                if isinstance(message, Draft):
                    connection.flow.sent(len(data), len(message.token_ids), _now_us())
            except zmq.Again:
                if isinstance(message, Draft):
                    self._session.on_dropped(message)
                else:
                    self.counters.num_unsendable += 1

    def _pause(self, wait_ms: int, until: Lookup | None = None) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_out, zmq.POLLIN)
        if until is not None:
            poller.register(until, zmq.POLLIN)
        poller.poll(wait_ms)

    def _account(self) -> str:
        counts = asdict(self._session.counters) | asdict(self.counters)
        return " ".join(f"{name.removeprefix('num_')}={n}" for name, n in counts.items() if n)


def _now_us() -> int:
    return time.monotonic_ns() // 1000
