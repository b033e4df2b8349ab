"""Responder: the verifier's end of a link probe, for enrolled keys only."""

import time
from collections import Counter
from typing import cast

import zmq
import zmq.asyncio

from wanspec_kernels.keys import AllowList, Authenticator, Secret, secure_server
from wanspec_kernels.probing.frames import MAX_BYTES, REPLY_BYTES, Frame, FrameError

QUEUE = 2048  # messages, each way of a connection


class Responder:
    """Answers each frame with a small one that says when it came.

    Use as ``async with Responder(...) as responder: await responder.serve()``, which goes on until
    it is cancelled. What is no frame is counted and not answered.

    Raises:
        OSError: the address is no good, or taken.
    """

    def __init__(self, bind: str, *, secret: Secret, allowed: AllowList) -> None:
        self.counters: Counter[str] = Counter()
        self.address = ""
        self._bind = bind
        self._secret = secret
        self._context = zmq.asyncio.Context()
        self._authenticator = Authenticator(self._context, allowed)
        self._socket = self._context.socket(zmq.ROUTER)

    async def __aenter__(self) -> "Responder":
        self._authenticator.start()
        socket = self._socket
        secure_server(cast("zmq.Socket[bytes]", socket), self._secret)
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = QUEUE
        socket.maxmsgsize = MAX_BYTES
        try:
            socket.bind(self._bind)
        except zmq.ZMQError as error:
            await self.__aexit__()
            raise OSError(f"cannot bind {self._bind}: {error.strerror}") from None
        self.address = socket.get_string(zmq.LAST_ENDPOINT)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._authenticator.close()
        self._socket.close()
        self._context.term()

    @property
    def num_refused(self) -> int:
        return self._authenticator.num_refused

    async def serve(self) -> None:
        while True:
            frames = await self._socket.recv_multipart(copy=False)
            received_us = now_us()
            self.counters["received"] += 1
            try:
                if len(frames) != 2:
                    raise FrameError(f"expected 1 part, got {len(frames) - 1}")
                asked = Frame.decode(frames[1].bytes)
            except FrameError:
                self.counters["malformed"] += 1
                continue
            reply = Frame(asked.number, asked.sent_us, received_us).encode(REPLY_BYTES)
            # A peer that reads nothing loses its replies, not our memory.
            await self._socket.send_multipart([frames[0].bytes, reply])


def now_us() -> int:
    return time.monotonic_ns() // 1000
