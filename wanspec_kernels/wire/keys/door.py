"""Door: the way into one ROUTER, for enrolled keys, and with bounds."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import cast

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from wanspec_kernels.wire.addresses import binds_ipv6
from wanspec_kernels.wire.keys.allow_list import AllowList
from wanspec_kernels.wire.keys.authenticator import Authenticator
from wanspec_kernels.wire.keys.connections import Connection, Connections
from wanspec_kernels.wire.keys.files import Secret
from wanspec_kernels.wire.keys.sockets import secure_server, seed_routing_ids

SILENT_MS = 10_000.0  # for which a connection is kept without a message
LOOK_S = 0.25
MONITOR = "inproc://wanspec.connections"
ACCEPTED, ENDED = zmq.EVENT_ACCEPTED, zmq.EVENT_DISCONNECTED
FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL

logger = logging.getLogger(__name__)


class Door:
    """A CURVE-secured ROUTER of enrolled keys, whose connections are named by us and bounded.

    What is received has to pass `admits` first. Nothing that a peer does before or after its
    handshake takes another's place, ends the process or holds a descriptor for long: see
    `Authenticator` and `Connections`. A key that was taken off the list is not heard any more once
    `on_unlisted` has been called with it, and has half a second left to hear why.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        *,
        secret: Secret,
        allowed: AllowList,
        silent_ms: float = SILENT_MS,
        on_unlisted: Callable[[str], None] = lambda _: None,
        on_refused: Callable[[str, str], None] = lambda address, key: None,
        on_failed: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_refused` is told of peers turned away, by address and public key; `on_failed` of
        handshakes that ended before they said whose key it was.
        """
        self.allowed = allowed
        self._context = context
        self._secret = secret
        self._on_unlisted = on_unlisted
        self._on_failed = on_failed
        self._authenticator = Authenticator(context, allowed, on_refused)
        self._connections = Connections(silent_ms=silent_ms)
        self._named: dict[bytes, Connection] = {}  # by routing id
        self._events: zmq.Socket[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        seed_routing_ids()
        self.socket = context.socket(zmq.ROUTER)

    @property
    def num_refused(self) -> int:
        """Handshakes refused: the key is not enrolled, or there was none."""
        return self._authenticator.num_refused

    @property
    def num_closed(self) -> int:
        """Connections that we closed."""
        return self._connections.num_closed

    def open(self, bind: str) -> str:
        """Let drafters in, in tasks of the running loop; the address that they may dial.

        Raises:
            OSError: the address is no good, or taken.
        """
        self._authenticator.start()
        socket = cast("zmq.Socket[bytes]", self.socket)
        secure_server(socket, self._secret)
        socket.ipv6 = binds_ipv6(bind)
        socket.monitor(MONITOR, ACCEPTED | ENDED | FAILED)
        events: zmq.Socket[bytes] = zmq.Context.shadow(self._context).socket(zmq.PAIR)
        self._events = events
        events.rcvhwm = 0  # a full queue would hold up libzmq's thread
        events.connect(MONITOR)
        try:
            socket.bind(bind)
        except zmq.ZMQError as error:
            raise OSError(f"cannot bind {bind}: {error.strerror}") from None
        self._task = asyncio.create_task(self._look_after(), name="door")
        return socket.get_string(zmq.LAST_ENDPOINT)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])  # raises our own cancellation, and not the task's
        await self._authenticator.close()
        if self._events is not None:
            self.socket.disable_monitor()
            self._events.close()
        self.socket.close()
        self._connections.close()
        self._task = self._events = None

    def admits(self, frames: list[zmq.Frame]) -> bool:
        """May these frames of a message, received with ``copy=False``, be looked at?"""
        routing_id = frames[0].bytes
        connection = self._named.get(routing_id) or self._first(routing_id, frames[-1])
        if connection is None or connection.shut or connection.unlisted_ms is not None:
            return False
        connection.heard_ms = now_ms()
        return True

    def _first(self, routing_id: bytes, payload: zmq.Frame) -> Connection | None:
        """The connection of a routing id that was not heard before, if it is one of ours."""
        self._read_events()
        descriptor, user = payload.get(zmq.SRCFD), str(payload.get("User-Id"))
        connection = self._connections.get(descriptor)
        if connection is None:
            return None  # it has ended since
        if not self._authenticator.gave(routing_id, user):
            self._connections.shut(descriptor)
            return None
        if user.encode() not in self.allowed:
            return None
        self._connections.belongs(descriptor, user)
        self._named[routing_id] = connection
        return connection

    async def _look_after(self) -> None:
        while True:
            try:
                self._look()
            except Exception:
                # Ours is the fault, but it must not leave the door without bounds.
                logger.exception("connections could not be looked after")
            await asyncio.sleep(LOOK_S)

    def _look(self) -> None:
        self._read_events()
        users = {key.decode() for key in self.allowed.read()}
        for user in self._connections.tick(users, now_ms()):
            self._on_unlisted(user)
        self._named = {r: c for r, c in self._named.items() if c in self._connections}

    def _read_events(self) -> None:
        assert self._events is not None
        while True:
            try:
                frames = self._events.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            event = parse_monitor_message(frames)
            if event["event"] == ACCEPTED:
                self._connections.accepted(event["value"], now_ms())
            elif event["event"] == ENDED:
                self._connections.ended(event["value"])
            else:
                self._on_failed()
        self._connections.crowd_out()


def now_ms() -> float:
    return time.monotonic() * 1000
