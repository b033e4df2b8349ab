"""The ZAP handler: it lets enrolled keys in, and names their connections."""

import asyncio
import hashlib
import hmac
import os
from collections.abc import Callable
from contextlib import suppress

import zmq
import zmq.asyncio
from zmq.utils import z85

from wanspec_kernels.wire.keys.allow_list import AllowList
from wanspec_kernels.wire.keys.sockets import ZAP_DOMAIN

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_VERSION = b"1.0"
# libzmq takes the last routing id that it reads. Right after it asked, it looks whether there is an
# answer, then reads what the peer says, and then waits for an answer; ours has to be in the last.
ANSWER_AFTER_S = 0.003
NONCE_BYTES = 8


class Authenticator:
    """The ZAP handler (ZeroMQ RFC 27) of one context: keys of the allow-list come in, nobody else.

    A message's authenticated key is then ``frame.get("User-Id")``, as Z85 text, of a frame received
    with ``copy=False``. A ROUTER knows the connection by a routing id that we gave it, whatever the
    peer called itself, and that nobody else could: `gave`.

    Use as ``async with Authenticator(context, allowed): ...``.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        allowed: AllowList,
        on_refused: Callable[[str, str], None] = lambda address, key: None,
    ) -> None:
        """`on_refused` gets the address and the public key (or "") of each peer turned away."""
        self.allowed = allowed
        self.num_refused = 0
        self._on_refused = on_refused
        self._context = context
        self._socket: zmq.asyncio.Socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._id_key = os.urandom(32)

    def start(self) -> None:
        """Bind the handler and answer from a task of the running loop."""
        self._socket = self._context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(ZAP_ENDPOINT)
        self._task = asyncio.create_task(self._serve(self._socket), name="zap")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])  # raises our own cancellation, and not the task's
        if self._socket is not None:
            self._socket.close()
        self._task = self._socket = None

    async def __aenter__(self) -> "Authenticator":
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _serve(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            request = await socket.recv_multipart()
            await asyncio.sleep(ANSWER_AFTER_S)
            await socket.send_multipart(self.answer(request))

    def answer(self, request: list[bytes]) -> list[bytes]:
        """The reply to one ZAP request; whatever is not an enrolled CURVE key is refused."""
        request_id = request[1] if len(request) > 1 else b""
        user = shown = b""
        address = request[3][:64].decode("ascii", "replace") if len(request) > 3 else ""
        with suppress(ValueError):
            # The routing id in it is our own socket's.
            version, _, domain, _, _routing_id, mechanism, key = request
            if (version, domain, mechanism) == (ZAP_VERSION, ZAP_DOMAIN, b"CURVE"):
                shown = z85.encode(key)
                if shown in self.allowed:
                    user = shown
        if user:
            identity = _property(b"Identity", self._new_id(user))
            return [ZAP_VERSION, request_id, b"200", b"OK", user, identity]
        self.num_refused += 1
        self._on_refused(address, shown.decode("ascii"))
        return [ZAP_VERSION, request_id, b"400", b"key not enrolled", b"", b""]

    def gave(self, routing_id: bytes, user: str) -> bool:
        """Was it this handler that named a connection of `user` so?"""
        nonce, tag = routing_id[:NONCE_BYTES], routing_id[NONCE_BYTES:]
        return hmac.compare_digest(tag, self._tag(nonce, user.encode()))

    def _new_id(self, user: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._tag(nonce, user)

    def _tag(self, nonce: bytes, user: bytes) -> bytes:
        return hashlib.blake2b(nonce + user, key=self._id_key, digest_size=16).digest()


def _property(name: bytes, value: bytes) -> bytes:
    """A property of ZMTP's metadata (ZeroMQ RFC 23)."""
    return bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value
