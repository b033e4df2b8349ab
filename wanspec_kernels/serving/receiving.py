"""Receiving: a socket is emptied in short turns, and rests between them."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import zmq
import zmq.asyncio

from wanspec_kernels.drafts.admission import Admission, Refusal

logger = logging.getLogger(__name__)

TURN_MS = 0.5  # of this thread; the message that ends a turn may take longer
WAKE_MS = 0.2  # the loop takes to wake for a turn (bench/NOTES.md)


async def receive(
    socket: zmq.asyncio.Socket,
    admission: Admission,
    counters: Counter[str],
    *,
    clock: Callable[[], float],
    admits: Callable[[list[zmq.Frame]], bool],
    on_message: Callable[[str, list[zmq.Frame]], None],
    on_refused: Callable[[str, list[zmq.Frame], Refusal], None],
) -> None:
    """For ever. What is behind in the queue stays there while we rest, and TCP holds it back.

    What `admits` refuses is none of ours: it is counted, and neither read nor answered.
    """
    # asyncio's own way to receive takes four times as long a message, where many wait.
    at_hand = cast("zmq.Socket[bytes]", zmq.Socket.shadow(cast(Any, socket)))
    while True:
        frames = await socket.recv_multipart(copy=False)
        admission.worked(WAKE_MS, clock())
        began_ms = _thread_ms()
        ends_ms = began_ms + TURN_MS
        while True:
            now = clock()
            key = str(frames[-1].get("User-Id"))
            num_bytes = sum(len(frame) for frame in frames[1:])
            counters["received"] += 1
            counters["bytes_received"] += num_bytes
            is_read = False
            try:
                if not admits(frames):
                    counters["not_admitted"] += 1
                elif (refusal := admission.judge(key, num_bytes, now)) is None:
                    is_read = True
                    on_message(key, frames)
                else:
                    counters[refusal.value] += 1
                    on_refused(key, frames, refusal)
            except Exception:
                # Ours is the fault, but it must not end the service.
                counters["internal_errors"] += 1
                logger.exception("a message could not be handled")
            ended_ms = _thread_ms()
            admission.spent(key, ended_ms - began_ms, num_bytes, now, read=is_read)
            if ended_ms >= ends_ms:
                break
            began_ms = ended_ms
            try:
                frames = at_hand.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
        await asyncio.sleep(admission.rest_ms(clock()) / 1000)


def _thread_ms() -> float:
    # Of this thread only: what the machine gives to others is not the sender's doing.
    return time.thread_time() * 1000
