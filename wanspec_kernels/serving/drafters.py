"""DrafterSocket: the socket that remote drafters dial, and the exchange behind it."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, cast

import zmq
import zmq.asyncio

from wanspec_kernels.drafts.admission import Refusal
from wanspec_kernels.drafts.exchange import Exchange
from wanspec_kernels.serving.receiving import receive
from wanspec_kernels.wire import MAX_MESSAGE_BYTES
from wanspec_kernels.wire.addresses import binds_ipv6
from wanspec_kernels.wire.keys import SILENT_MS, AllowList, Door, Secret

logger = logging.getLogger(__name__)

LINGER_MS = 200
SEND_QUEUE = 256  # messages, for each drafter; more are dropped and counted
RECEIVE_QUEUE = 64  # messages, from each drafter; then TCP holds it back
# A handshake that ends before it says whose key it is: the peer has another server key than ours,
# or speaks another protocol.
NO_HANDSHAKE = (
    "the encrypted handshake failed: the peer's --server-key is not this verifier's NAME.key, or "
    "it is no drafter"
)


class DrafterSocket:
    """A CURVE-secured ROUTER for enrolled drafters only.

    It carries the exchange's messages. `on_draft` is called after a message that brought a draft
    which adds something.
    """

    def __init__(
        self,
        bind: str,
        *,
        exchange: Exchange,
        secret: Secret,
        allowed: AllowList,
    ) -> None:
        self.exchange = exchange
        self.address = ""
        self.on_draft: Callable[[], None] = lambda: None
        self._bind, self._secret, self._allowed = bind, secret, allowed
        self._tasks: list[asyncio.Task[None]] = []
        self._context: zmq.asyncio.Context | None = None
        self._door: Door | None = None
        self._socket: zmq.asyncio.Socket | None = None
        exchange.name_of = lambda key: allowed.name_of(key.encode()) or key

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
        session = self.exchange.config.session
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
        socket.sndhwm, socket.rcvhwm = SEND_QUEUE, RECEIVE_QUEUE
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

    def send(self) -> None:
        """Send what the exchange has to say."""
        if self._socket is None:
            return
        now = now_ms()
        for outgoing in self.exchange.to_send(now):
            future = cast(
                "asyncio.Future[Any]",
                self._socket.send_multipart(
                    [outgoing.peer, outgoing.frame.data], flags=zmq.NOBLOCK
                ),
            )
            error = future.exception()  # With NOBLOCK it is done already.
            if error is not None:
                is_gone = isinstance(error, zmq.ZMQError) and error.errno == zmq.EHOSTUNREACH
                self.exchange.undelivered(outgoing, now, is_gone=is_gone)

    async def _receive(self, door: Door) -> None:
        await receive(
            door.socket,
            self.exchange.admission,
            self.exchange.counters,
            clock=now_ms,
            admits=door.admits,
            on_message=self._on_message,
            on_refused=self._on_refused,
        )

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(max(1.0, self.exchange.wake_at() - now_ms()) / 1000)
            self.send()

    def _on_message(self, key: str, frames: list[zmq.Frame]) -> None:
        peer, *rest = (frame.bytes for frame in frames)
        if self.exchange.receive(peer, key, rest, now_ms()):
            self.on_draft()
        self.send()

    def _on_refused(self, key: str, frames: list[zmq.Frame], refusal: Refusal) -> None:
        self.exchange.refused(frames[0].bytes, key, refusal, now_ms())
        self.send()

    def _on_unlisted(self, key: str) -> None:
        self.exchange.unlisted(key)
        self.send()

    def _on_failed(self) -> None:
        self.exchange.counters["handshakes_failed"] += 1
        self.exchange.turn_away("somebody", NO_HANDSHAKE)

    def _on_stranger(self, address: str, key: str) -> None:
        self.exchange.turn_away(
            f"{address}, key {key or 'none'}",
            f"this key is not enrolled: {self._allowed.folder} has no NAME.key file with it",
        )


def check_bind(address: str) -> None:
    """Bind an address and let it go again: what is wrong with it shows before a model is loaded.

    Somebody may take it in between; then `DrafterSocket.start` says so.

    Raises:
        OSError: the address is no good, or taken.
    """
    context = zmq.Context()
    try:
        with context.socket(zmq.ROUTER) as socket:
            socket.linger = 0
            socket.ipv6 = binds_ipv6(address)
            socket.bind(address)
    except zmq.ZMQError as error:
        raise OSError(
            f"expected a free address such as tcp://*:5555, got {address}: {error.strerror}"
        ) from None
    finally:
        context.term()


def now_ms() -> float:
    return time.monotonic() * 1000
