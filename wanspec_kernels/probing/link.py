"""Link probe: delays and bandwidth from a drafter's machine to a verifier's, at the real sizes.

A ping of 64 bytes says little of a link that is to carry eight hundred messages of 1.8 kB a second.
"""

import select
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass

import numpy as np
import zmq
from numpy.typing import NDArray

from wanspec_kernels.probing.frames import MAX_BYTES, MIN_BYTES, REPLY_BYTES, Frame, FrameError
from wanspec_kernels.probing.records import LinkRecord, now
from wanspec_kernels.probing.responder import QUEUE, now_us
from wanspec_kernels.wire.addresses import Lookup, NotResolved, why_unreachable
from wanspec_kernels.wire.keys import Secret, secure_client

LOOKUP_S = 10.0
GREETING_MS = 10_000
TIMEOUT_MS = 5_000  # of a reply; what takes longer is lost
STREAM_MESSAGES = 1024  # back to back
STREAM_TIMEOUT_MS = 30_000
SLOW_START = 0.25  # of the stream, in which TCP finds its pace
MAX_OUTSTANDING = 1024  # paced messages without a reply; then the link is as good as gone


class ProbeError(OSError):
    """No responder answers, or the link broke and stayed so."""


@dataclass(frozen=True, slots=True)
class Pacing:
    """How a link is probed. Raises ValueError."""

    payload_bytes: int
    seconds: float = 60.0
    interval_ms: float = 20.0

    def __post_init__(self) -> None:
        if not MIN_BYTES <= self.payload_bytes <= MAX_BYTES:
            raise ValueError(
                f"payload bytes: expected {MIN_BYTES} to {MAX_BYTES}, got {self.payload_bytes}"
            )
        if not 1.0 <= self.interval_ms <= 10_000.0 or not 0 < self.seconds <= 3600.0:
            raise ValueError(
                f"expected an interval of 1 to 10000 ms and up to 3600 s, got "
                f"{self.interval_ms} ms and {self.seconds} s"
            )


class LinkProbe:
    """Dials a `Responder`. Use as ``with LinkProbe(...) as probe: probe.run(...)``."""

    def __init__(self, endpoint: str, *, secret: Secret, server_public: bytes) -> None:
        self._endpoint = _resolved(endpoint)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.sndhwm = self._socket.rcvhwm = QUEUE
        self._socket.maxmsgsize = MAX_BYTES
        self._socket.ipv6 = True  # which dials IPv4 as well
        secure_client(self._socket, secret, server_public)
        try:
            self._socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ProbeError(f"{endpoint}: cannot dial: {error.strerror}") from None
        self._number = 0
        self._sent_us: dict[int, int] = {}
        self._replies: dict[int, tuple[int, int, int]] = {}  # sent, received, answered, in us

    def __enter__(self) -> "LinkProbe":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._context.destroy(linger=0)

    def run(
        self,
        pacing: Pacing,
        *,
        name: str,
        region: str,
        greeting_ms: int = GREETING_MS,
        progress: Callable[[float], None] = lambda _: None,
    ) -> LinkRecord:
        """Takes `pacing.seconds`, and at most half a minute more. Raises ProbeError."""
        at = now()
        self._greet(greeting_ms)
        numbers = self._paced(pacing, progress)
        answered = [self._replies[n] for n in numbers if n in self._replies]
        if not answered:
            raise ProbeError(f"{self._endpoint}: no reply within {TIMEOUT_MS} ms")
        up, down, least_ms = one_way_delays(np.array(answered, dtype=np.int64))
        bandwidth_mbit, messages = self._stream(pacing.payload_bytes)
        return LinkRecord(
            name,
            region,
            at,
            pacing.payload_bytes,
            REPLY_BYTES,
            pacing.interval_ms,
            round(least_ms, 3),
            tuple(np.round(up, 2).tolist()),
            tuple(np.round(down, 2).tolist()),
            len(numbers) - len(answered),
            round(bandwidth_mbit, 3),
            messages,
        )

    def _greet(self, wait_ms: int) -> None:
        number = self._send(MIN_BYTES)
        until_us = now_us() + wait_ms * 1000
        while number not in self._replies:
            if not self._receive(until_us):
                reason = why_unreachable(self._endpoint) or "it connects, but says nothing"
                raise ProbeError(
                    f"{self._endpoint}: no answer in {wait_ms / 1000:.0f} s ({reason}); expected "
                    "`wanspec probe serve` there, our key in its folder and its key as --server-key"
                )

    def _paced(self, pacing: Pacing, progress: Callable[[float], None]) -> list[int]:
        """Numbers of the messages sent; none waits for another's reply."""
        count = max(1, round(pacing.seconds * 1000 / pacing.interval_ms))
        began_us, numbers = now_us(), []
        for index in range(count):
            due_us = began_us + int(index * pacing.interval_ms * 1000)
            while self._receive(due_us):
                pass
            if self._number - len(self._replies) > MAX_OUTSTANDING:
                raise ProbeError(f"{self._endpoint}: {MAX_OUTSTANDING} messages without a reply")
            numbers.append(self._send(pacing.payload_bytes))
            progress((index + 1) / count)
        self._await(numbers, TIMEOUT_MS)
        return numbers

    def _stream(self, num_bytes: int) -> tuple[float, int]:
        """Mbit/s that came through, by the responder's clock, and of how many messages."""
        numbers = [self._send(num_bytes) for _ in range(STREAM_MESSAGES)]
        self._await(numbers, STREAM_TIMEOUT_MS)
        times = sorted(self._replies[n][1] for n in numbers if n in self._replies)
        times = times[int(SLOW_START * len(times)) :]
        if len(times) < 16:
            raise ProbeError(f"{self._endpoint}: the link does not carry {num_bytes} bytes a time")
        took_us = max(1, times[-1] - times[0])
        return 8.0 * num_bytes * (len(times) - 1) / took_us, len(times)

    def _await(self, numbers: list[int], wait_ms: int) -> None:
        missing = {n for n in numbers if n not in self._replies}
        until_us = now_us() + wait_ms * 1000
        while missing and self._receive(until_us):
            missing -= self._replies.keys()

    def _send(self, num_bytes: int) -> int:
        self._number += 1
        self._sent_us[self._number] = sent_us = now_us()
        with suppress(zmq.Again):  # the queue is full: it counts as lost
            self._socket.send(Frame(self._number, sent_us).encode(num_bytes), zmq.NOBLOCK)
        return self._number

    def _receive(self, until_us: int) -> bool:
        """Read a reply, or let the time pass; False: it did."""
        left_us = until_us - now_us()
        if left_us <= 0 or not self._socket.poll(-(-left_us // 1000)):
            return False
        data = self._socket.recv()
        try:
            reply = Frame.decode(data)
        except FrameError:
            return True  # it is the peer's to send, and ours not to trust
        sent_us = self._sent_us.get(reply.number)
        if sent_us is not None and reply.number not in self._replies:
            self._replies[reply.number] = (sent_us, reply.received_us, now_us())
        return True


def _resolved(endpoint: str) -> str:
    """The first of the name's addresses that takes a connection, or else the first."""
    try:
        with closing(Lookup(endpoint)) as lookup:
            select.select([lookup], [], [], LOOKUP_S)
            endpoints = lookup.endpoints()
    except ValueError as error:
        raise ProbeError(f"cannot dial: {error}") from None
    except NotResolved as error:
        raise ProbeError(str(error)) from None
    if len(endpoints) == 1:
        return endpoints[0]
    return next((e for e in endpoints if not why_unreachable(e)), endpoints[0])


def one_way_delays(
    times_us: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Delays up and down above the least of each, and the least round trip, in ms.

    Rows of `times_us` are (sent and answered by our clock in columns 0 and 2, received by the
    peer's in column 1), in order of sending. Clocks that run at different rates make one way seem
    to grow as the other shrinks; the trend between the least delays of the first and the last fifth
    is taken for that.
    """
    sent, received, answered = (times_us[:, i] / 1000.0 for i in range(3))
    up, down = received - sent, answered - received
    least = float((up + down).min())
    fifth = len(times_us) // 5
    if fifth:
        growth = (up[-fifth:].min() - up[:fifth].min()) - (down[-fifth:].min() - down[:fifth].min())
        # From the middle of the first fifth to that of the last it is four fifths.
        drift = growth / 2.0 * (np.arange(len(times_us)) / (4.0 * fifth))
        up, down = up - drift, down + drift
    return up - up.min(), down - down.min(), least
