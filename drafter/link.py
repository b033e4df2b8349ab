"""Link: the socket of a drafter and its reconnects; it drives a `Connection` in real time."""

from __future__ import annotations

import logging
import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from socket import socketpair

import zmq
from zmq.utils.monitor import recv_monitor_message

from drafter.backoff import Backoff
from drafter.connection import GREETING_TIMEOUT_US, Connection, ConnectionCounters
from drafter.flow import FlowTimes
from drafter.session import Session
from wanspec_kernels.wire import MAX_MESSAGE_BYTES, Hello, MalformedMessage
from wanspec_kernels.wire.addresses import Lookup, NotResolved, why_unreachable
from wanspec_kernels.wire.keys import Secret, secure_client

log = logging.getLogger(__name__)

SEND_QUEUE = 64  # frames
RECEIVE_QUEUE = 256
FRAMES_A_ROUND = 64  # read before the model runs again
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
class LinkCounters(ConnectionCounters):
    """Of all its connections together."""

    num_connects: int = 0


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
        flow_times: FlowTimes | None = None,
    ) -> None:
        self.counters = LinkCounters()
        self._session = session
        self._endpoint = endpoint
        self._secret = secret
        self._server_public = server_public
        self._about = (vocabulary, model_name, max_requests, max_nodes)
        self._backoff = backoff or Backoff()
        self._greeting_timeout_us = greeting_timeout_us
        self._flow_times = flow_times
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
                counters=self.counters,
                greeting_timeout_us=self._greeting_timeout_us,
                flow_times=self._flow_times,
            )
            try:
                socket.connect(endpoint)
            except zmq.ZMQError as error:
                raise Refused(f"not an address to dial: {error.strerror}") from None
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
            connection.writable = bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)
            poller.register(socket, zmq.POLLIN | (zmq.POLLOUT if connection.waits_to_write else 0))
            now_us = _now_us()
            wait_us = connection.wake_at_us(now_us) - now_us
            ready = dict(poller.poll(-(-wait_us // 1000)))
            if self._stopping:
                socket.linger = LINGER_MS
                connection.close("the drafter stops")
                self._send(socket, connection)
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
            self._send(socket, connection)
            if connection.lost is not None:
                return connection.lost
            if connection.wants_step:
                connection.step()

    def _receive(self, socket: zmq.Socket[bytes], connection: Connection) -> None:
        for _ in range(FRAMES_A_ROUND):
            try:
                data, *more = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if more:
                got = 1 + len(more)
                connection.malformed(MalformedMessage(f"message: expected one frame, got {got}"))
            else:
                connection.receive(data, _now_us())

    def _send(self, socket: zmq.Socket[bytes], connection: Connection) -> None:
        """Send without waiting."""
        for frame in connection.frames_to_send(_now_us()):
            try:
                socket.send(frame.data, zmq.NOBLOCK)
            except zmq.Again:
                connection.dropped(frame)

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
