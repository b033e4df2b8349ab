"""Responder: the verifier's end of a link probe, for enrolled keys only."""

import time
from collections import Counter

import zmq
import zmq.asyncio

from wanspec_kernels.probing.frames import MAX_BYTES, REPLY_BYTES, Frame, FrameError
from wanspec_kernels.wire.keys import AllowList, Door, Secret

QUEUE = 2048  # messages, each way of a connection
SILENT_MS = 30_000.0  # a probe may leave ten seconds between two messages


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
        self._context = zmq.asyncio.Context()
        self._door = Door(self._context, secret=secret, allowed=allowed, silent_ms=SILENT_MS)

    async def __aenter__(self) -> "Responder":
        socket = self._door.socket
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = QUEUE
        socket.maxmsgsize = MAX_BYTES
        try:
            self.address = self._door.open(self._bind)
        except OSError:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._door.close()
        self._context.term()

    @property
    def num_refused(self) -> int:
        return self._door.num_refused

    async def serve(self) -> None:
        while True:
            frames = await self._door.socket.recv_multipart(copy=False)
            received_us = now_us()
            if not self._door.admits(frames):
                self.counters["not_admitted"] += 1
                continue
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
            await self._door.socket.send_multipart([frames[0].bytes, reply])


def now_us() -> int:
    return time.monotonic_ns() // 1000
