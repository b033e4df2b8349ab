"""A wide-area link in user space: a TCP proxy with delay, jitter and a bandwidth, on the loopback.

As a process it prints its port, then takes the lines ``stall``, ``resume``, ``cut``, ``tear`` and
``bandwidth MBIT``; it ends with SIGTERM, with its parent, or when standard input, if a pipe,
closes::

    python -m wanspec_kernels.link_emulator --connect 127.0.0.1:5555 --one-way-delay-ms 10
"""

import argparse
import asyncio
import ipaddress
import os
import random
import selectors
import signal
import stat
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

MIN_SEGMENT_BYTES = 1448  # TCP's payload of an Ethernet frame
MAX_SEGMENT_BYTES = 32 * 1024
MAX_SEGMENTS = 2048  # in flight, each way of a connection; then the sender has to wait
PARENT_CHECK_S = 0.5


@dataclass(slots=True)
class Segment:
    """One on its way; times in seconds."""

    leaves: float  # the queue
    travel: float
    arrival: float  # earlier or later once the bandwidth changes, while it is in the queue


class Direction:
    """One way of the link, shared by all connections: when does a segment sent now arrive?

    It leaves when those before it have left, at `bandwidth_mbit`; travels for the delay and a
    jitter that is uniform in 0..`jitter_ms`; and overtakes nothing.
    """

    def __init__(
        self, delay_ms: float, jitter_ms: float, bandwidth_mbit: float | None, seed: str
    ) -> None:
        self._delay_s = delay_ms / 1e3
        self._jitter_s = jitter_ms / 1e3
        self._random = random.Random(seed)
        self._free_at = 0.0
        self._queue: deque[Segment] = deque()
        self._last_arrival = 0.0  # of those sent
        self._left_arrival = 0.0  # of those that have left the queue
        self._s_per_byte = _s_per_byte(bandwidth_mbit)

    def limit(self, bandwidth_mbit: float | None, now: float) -> None:
        """A new bandwidth for what is sent from now on, and what waits; None or 0: no limit."""
        self._pass_on(now)
        before, self._s_per_byte = self._s_per_byte, _s_per_byte(bandwidth_mbit)
        if not self._queue:
            return
        # Whatever waits goes without a gap, so all of its times stretch alike.
        stretch = self._s_per_byte / before
        self._last_arrival = self._left_arrival
        for segment in self._queue:
            segment.leaves = now + (segment.leaves - now) * stretch
            self._last_arrival = max(self._last_arrival, segment.leaves + segment.travel)
            segment.arrival = self._last_arrival
        self._free_at = self._queue[-1].leaves

    def send(self, now: float, num_bytes: int) -> Segment:
        self._pass_on(now)
        self._free_at = max(now, self._free_at) + num_bytes * self._s_per_byte
        travel = self._delay_s + self._random.uniform(0.0, self._jitter_s)
        self._last_arrival = max(self._last_arrival, self._free_at + travel)
        segment = Segment(self._free_at, travel, self._last_arrival)
        self._queue.append(segment)
        return segment

    def _pass_on(self, now: float) -> None:
        while self._queue and self._queue[0].leaves <= now:
            self._left_arrival = self._queue.popleft().arrival


class LinkEmulator:
    """Forwards connections to `listen` on to `connect`; both are (host, port) on the loopback.

    A stalled link delivers nothing either way; what it holds is bounded, then senders have to wait.
    `cut` closes both ends of every connection, and new ones may come; `tear` first delivers half of
    the next segment, so that a message breaks off in its middle. The same `seed` gives the same
    sequence of jitters. Use as ``async with LinkEmulator(connect=...) as link: link.port``.

    Raises:
        ValueError: an address that is not loopback, or a negative number.
    """

    def __init__(
        self,
        *,
        connect: tuple[str, int],
        listen: tuple[str, int] = ("127.0.0.1", 0),
        one_way_delay_ms: float = 0.0,
        jitter_ms: float = 0.0,
        bandwidth_mbit: float | None = None,
        seed: int = 0,
    ) -> None:
        for name, (host, _) in (("listen", listen), ("connect", connect)):
            if not ipaddress.ip_address(host).is_loopback:
                raise ValueError(f"{name}: expected a loopback address, got {host}")
        if not (one_way_delay_ms >= 0 and jitter_ms >= 0):
            raise ValueError(
                f"expected a delay and a jitter >= 0 ms, got {one_way_delay_ms} and {jitter_ms}"
            )
        if bandwidth_mbit is not None and not bandwidth_mbit > 0:
            raise ValueError(f"bandwidth_mbit: expected a positive number, got {bandwidth_mbit}")
        self._listen, self._connect = listen, connect
        self._up, self._down = (
            Direction(one_way_delay_ms, jitter_ms, bandwidth_mbit, f"{seed} {way}")
            for way in ("up", "down")
        )
        # A segment is read whole and delivered whole: 1 ms of the link's time keeps errors small.
        self._segment_bytes = _segment_bytes(bandwidth_mbit)
        self._tearing = False
        self._connections: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._limited = asyncio.Event()  # then another waits for the next new bandwidth
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None, "the emulator has not started"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, *self._listen)

    async def close(self) -> None:
        assert self._server is not None, "the emulator has not started"
        self._server.close()
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def __aenter__(self) -> "LinkEmulator":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def stall(self) -> None:
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def cut(self) -> None:
        for connection in self._connections:
            connection.cancel()

    def tear(self) -> None:
        self._tearing = True

    def limit(self, bandwidth_mbit: float | None) -> None:
        """Another bandwidth, each way, also for what waits; None or 0: no limit."""
        now = asyncio.get_running_loop().time()
        self._segment_bytes = _segment_bytes(bandwidth_mbit)
        for way in (self._up, self._down):
            way.limit(bandwidth_mbit, now)
        self._limited.set()
        self._limited = asyncio.Event()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None or not self._server.is_serving():
            writer.transport.abort()  # it came while we closed
            return
        connection = asyncio.create_task(self._forward(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _forward(self, near_reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        # asyncio sets TCP_NODELAY on every connection.
        ends = [near]
        try:
            far_reader, far = await asyncio.open_connection(*self._connect)
            ends.append(far)
            async with asyncio.TaskGroup() as group:
                for reader, writer, way in (
                    (near_reader, far, self._up),
                    (far_reader, near, self._down),
                ):
                    segments: asyncio.Queue[tuple[Segment, bytes]] = asyncio.Queue(MAX_SEGMENTS)
                    group.create_task(self._take(reader, segments, way))
                    group.create_task(self._deliver(segments, writer))
        except* (OSError, asyncio.CancelledError):
            pass  # no server, an end that broke off, or a cut: the same to both ends
        finally:
            for end in ends:
                end.transport.abort()
            for end in ends:
                with suppress(OSError):
                    await end.wait_closed()

    async def _take(
        self,
        reader: asyncio.StreamReader,
        segments: "asyncio.Queue[tuple[Segment, bytes]]",
        way: Direction,
    ) -> None:
        now = asyncio.get_running_loop().time
        data = b"-"
        while data:
            data = await reader.read(self._segment_bytes)
            await segments.put((way.send(now(), len(data)), data))

    async def _deliver(
        self, segments: "asyncio.Queue[tuple[Segment, bytes]]", writer: asyncio.StreamWriter
    ) -> None:
        now = asyncio.get_running_loop().time
        while True:
            segment, data = await segments.get()
            while segment.arrival > now():
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(segment.arrival):
                        await self._limited.wait()
            await self._flowing.wait()
            if not data:
                writer.write_eof()
                return
            if self._tearing:
                self._tearing = False
                writer.write(data[: len(data) // 2])
                await writer.drain()
                self.cut()
                return
            writer.write(data)
            await writer.drain()


def _s_per_byte(bandwidth_mbit: float | None) -> float:
    return 8e-6 / bandwidth_mbit if bandwidth_mbit else 0.0


def _segment_bytes(bandwidth_mbit: float | None) -> int:
    """What is read at a time: 1 ms of the link's time."""
    wanted = int(bandwidth_mbit * 125) if bandwidth_mbit else MAX_SEGMENT_BYTES
    return min(max(wanted, MIN_SEGMENT_BYTES), MAX_SEGMENT_BYTES)


def _obey(link: LinkEmulator, line: str) -> None:
    match line.split():
        case ["stall"]:
            link.stall()
        case ["resume"]:
            link.resume()
        case ["cut"]:
            link.cut()
        case ["tear"]:
            link.tear()
        case ["bandwidth", mbit]:
            link.limit(float(mbit))


async def _run(link: LinkEmulator) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)

    def obey() -> None:
        lines = os.read(0, 4096).decode("ascii", "replace").splitlines()
        if not lines:
            ended.set()
            loop.remove_reader(0)
        for line in lines:
            _obey(link, line)

    async with link:
        if stat.S_ISFIFO(os.fstat(0).st_mode):
            loop.add_reader(0, obey)
        print(link.port, flush=True)
        parent = os.getppid()
        while not ended.is_set() and os.getppid() == parent:
            with suppress(TimeoutError):
                async with asyncio.timeout(PARENT_CHECK_S):
                    await ended.wait()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return ("127.0.0.1" if host == "localhost" else host.strip("[]")), int(port)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="link_emulator", description="a wide-area link, emulated")
    parser.add_argument("--connect", type=_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--listen", type=_address, default=("127.0.0.1", 0), metavar="HOST:PORT")
    parser.add_argument("--one-way-delay-ms", type=float, default=0.0)
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    parser.add_argument("--bandwidth-mbit", type=float)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    def new_loop() -> asyncio.AbstractEventLoop:
        # epoll rounds its timeouts up to whole milliseconds, select does not.
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    with asyncio.Runner(loop_factory=new_loop) as runner:
        try:
            link = LinkEmulator(**vars(options))
        except ValueError as error:
            parser.error(str(error))
        runner.run(_run(link))


if __name__ == "__main__":
    main()
