import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from wanspec_kernels.link_emulator import Direction, LinkEmulator

HOST = "127.0.0.1"
WAIT_S = 10.0
# What a busy machine may add to one way; the emulator itself is late by a millisecond at most.
LATE_S = 0.15


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), WAIT_S))


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def serve(handler: Handler, port: int = 0) -> AsyncIterator[int]:
    handled: set[asyncio.Task[None]] = set()

    async def close_after(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handled.add(asyncio.create_task(close_after(reader, writer)))

    server = await asyncio.start_server(accept, HOST, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in handled:
            task.cancel()
        await asyncio.gather(*handled, return_exceptions=True)
        await server.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def echo_through(
    **options: Any,
) -> AsyncIterator[tuple[LinkEmulator, asyncio.StreamReader, asyncio.StreamWriter]]:
    async with (
        serve(echo) as port,
        LinkEmulator(connect=(HOST, port), **options) as link,
    ):
        reader, writer = await asyncio.open_connection(HOST, link.port)
        try:
            yield link, reader, writer
        finally:
            writer.close()


def test_arrivals_in_virtual_time() -> None:
    way = Direction(10.0, 0.0, 8.0, "seed")  # 1000 bytes take 1 ms
    assert way.send(1.0, 1000).arrival == pytest.approx(1.011)
    assert way.send(1.0, 1000).arrival == pytest.approx(1.012)
    assert way.send(5.0, 0).arrival == pytest.approx(5.010)


def test_jitter_is_seeded_bounded_and_overtakes_nothing() -> None:
    def arrivals(seed: str) -> list[float]:
        way = Direction(10.0, 5.0, None, seed)
        return [way.send(i / 1000, 100).arrival for i in range(1000)]

    assert arrivals("a") == arrivals("a") != arrivals("b")
    assert arrivals("a") == sorted(arrivals("a"))
    delays = [arrival - i / 1000 for i, arrival in enumerate(arrivals("a"))]
    assert min(delays) >= 0.010 - 1e-9
    assert max(delays) <= 0.015 + 1e-9
    assert max(delays) - min(delays) > 0.003


def test_round_trip_is_twice_the_delay() -> None:
    async def main() -> None:
        async with echo_through(one_way_delay_ms=10) as (_, reader, writer):
            clock = asyncio.get_running_loop().time
            round_trips = []
            for _ in range(9):
                start = clock()
                writer.write(b"ping")
                await reader.readexactly(4)
                round_trips.append(clock() - start)
            assert min(round_trips) >= 0.020
            assert sorted(round_trips)[4] < 0.020 + 2 * LATE_S

    run(main)


def test_bandwidth() -> None:
    num_bytes = 100_000

    async def main() -> None:
        async with echo_through(bandwidth_mbit=8) as (_, reader, writer):
            clock = asyncio.get_running_loop().time
            start = clock()
            writer.write(bytes(num_bytes))
            await reader.readexactly(num_bytes)
            took = clock() - start
            # The ways overlap but for a segment.
            assert 0.100 <= took < 0.102 + 2 * LATE_S

    run(main)


def test_bytes_arrive_whole_and_in_order_under_jitter() -> None:
    content = random.Random(1).randbytes(400_000)

    async def main() -> None:
        async with echo_through(one_way_delay_ms=1, jitter_ms=5, bandwidth_mbit=200) as (
            _,
            reader,
            writer,
        ):

            async def send() -> None:
                sizes = random.Random(2)
                at = 0
                while at < len(content):
                    size = sizes.randrange(1, 5000)
                    writer.write(content[at : at + size])
                    await writer.drain()
                    at += size
                writer.write_eof()

            sending = asyncio.create_task(send())
            assert await reader.read(-1) == content
            await sending

    run(main)


def test_a_stalled_link_holds_everything_back() -> None:
    async def main() -> None:
        async with echo_through() as (link, reader, writer):
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            link.stall()
            writer.write(b"b")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.readexactly(1), 0.1)
            link.resume()
            assert await reader.readexactly(1) == b"b"

    run(main)


def test_a_stalled_link_makes_its_sender_wait() -> None:
    async def main() -> None:
        async with echo_through(bandwidth_mbit=10) as (link, _, writer):
            link.stall()

            async def flood() -> None:
                while True:
                    writer.write(bytes(1 << 20))
                    await writer.drain()
                    nonlocal sent
                    sent += 1

            sent = 0
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(flood(), 0.7)
            assert sent < 20  # MB: the link's queue and the kernel's buffers
            writer.transport.abort()

    run(main)


def test_a_cut_closes_both_ends_and_new_connections_come() -> None:
    async def main() -> None:
        ended: asyncio.Queue[bytes] = asyncio.Queue()

        async def until_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")
            try:
                await ended.put(await reader.read())
            except ConnectionError:
                await ended.put(b"")

        async with (
            serve(until_end) as port,
            LinkEmulator(connect=(HOST, port)) as link,
        ):
            for _ in range(2):
                reader, writer = await asyncio.open_connection(HOST, link.port)
                assert await reader.readexactly(5) == b"hello"
                link.cut()
                with suppress(ConnectionError):
                    assert await reader.read() == b""
                assert await ended.get() == b""
                writer.close()

    run(main)


def test_a_torn_link_delivers_half_a_segment() -> None:
    async def main() -> None:
        received: asyncio.Queue[bytes] = asyncio.Queue()

        async def hear(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while data := await reader.read(100):
                    await received.put(data)
            await received.put(b"")

        async with serve(hear) as port, LinkEmulator(connect=(HOST, port)) as link:
            _, writer = await asyncio.open_connection(HOST, link.port)
            link.tear()
            writer.write(b"0123456789")
            assert await received.get() == b"01234"
            assert await received.get() == b""
            writer.close()

    run(main)


def test_a_new_bandwidth_is_that_of_what_is_sent_then() -> None:
    way = Direction(10.0, 0.0, None, "seed")
    assert way.send(1.0, 1000).arrival == pytest.approx(1.010)
    way.limit(8.0, 2.0)
    assert way.send(2.0, 1000).arrival == pytest.approx(2.011)
    way.limit(None, 3.0)
    assert way.send(3.0, 1000).arrival == pytest.approx(3.010)


def test_a_new_bandwidth_is_that_of_what_still_waits() -> None:
    way = Direction(10.0, 0.0, 8.0, "seed")
    segments = [way.send(1.0, 1000) for _ in range(4)]
    # One has left the queue, and half of the next.
    way.limit(0.8, 1.0015)
    expected = [1.011, 1.0015 + 0.005 + 0.010, 1.0265, 1.0365]
    assert [s.arrival for s in segments] == pytest.approx(expected)
    assert way.send(1.002, 1000).arrival == pytest.approx(1.0465)
    way.limit(None, 1.003)
    assert [s.arrival for s in segments] == pytest.approx([1.011, 1.013, 1.013, 1.013])
    assert way.send(1.003, 1000).arrival == pytest.approx(1.013)


def test_nothing_overtakes_when_the_bandwidth_changes() -> None:
    way, rng = Direction(10.0, 8.0, 8.0, "seed"), random.Random(0)
    segments, now = [], 0.0
    for _ in range(2000):
        now += rng.uniform(0.0, 0.004)
        if rng.random() < 0.1:
            gone = [(s, s.arrival) for s in segments if s.leaves <= now]
            way.limit(rng.choice([None, 0.1, 8.0, 50.0]), now)
            assert all(s.arrival == arrival for s, arrival in gone)
            assert all(s.arrival >= now + 0.010 for s in segments if s.leaves > now)
        segments.append(way.send(now, rng.randrange(2000)))
    arrivals = [s.arrival for s in segments]
    assert arrivals == sorted(arrivals)


def test_a_link_that_is_wide_again_delivers_what_waited() -> None:
    async def main() -> None:
        async with echo_through(bandwidth_mbit=0.001) as (link, reader, writer):
            writer.write(bytes(5000))  # 40 s each way
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.05)
            link.limit(None)
            await reader.readexactly(5000)

    run(main)


def test_a_half_closed_connection_still_answers() -> None:
    async def main() -> None:
        async def sum_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(str(len(await reader.read())).encode())
            writer.write_eof()

        async with serve(sum_up) as port, LinkEmulator(connect=(HOST, port)) as link:
            reader, writer = await asyncio.open_connection(HOST, link.port)
            writer.write(b"four")
            writer.write_eof()
            assert await reader.read() == b"4"
            writer.close()

    run(main)


def test_a_client_before_its_server_is_closed_and_may_come_again() -> None:
    async def main() -> None:
        async with serve(echo) as port:
            pass  # a port that nobody listens on now
        async with LinkEmulator(connect=(HOST, port)) as link:
            reader, writer = await asyncio.open_connection(HOST, link.port)
            with suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            async with serve(echo, port):
                reader, writer = await asyncio.open_connection(HOST, link.port)
                writer.write(b"a")
                assert await reader.readexactly(1) == b"a"
                writer.close()

    run(main)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"connect": ("192.0.2.1", 1)}, "connect: expected a loopback address, got 192.0.2.1"),
        ({"listen": ("0.0.0.0", 0)}, "listen: expected a loopback address"),
        ({"one_way_delay_ms": -1}, "-1"),
        ({"jitter_ms": float("nan")}, "nan"),
        ({"bandwidth_mbit": 0}, "bandwidth_mbit: expected a positive number, got 0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinkEmulator(**{"connect": (HOST, 1)} | options)


@pytest.mark.parametrize("end", ["SIGTERM", "stdin"])
def test_as_a_process(end: str) -> None:
    async def main() -> None:
        async with serve(echo) as port:
            process = subprocess.Popen(
                [sys.executable, "-m", "wanspec_kernels.link_emulator"]
                + ["--connect", f"{HOST}:{port}", "--one-way-delay-ms", "5", "--seed", "3"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            with process:
                assert process.stdin is not None
                assert process.stdout is not None
                link_port = int(await asyncio.to_thread(process.stdout.readline))
                reader, writer = await asyncio.open_connection(HOST, link_port)
                start = asyncio.get_running_loop().time()
                writer.write(b"a")
                assert await reader.readexactly(1) == b"a"
                assert asyncio.get_running_loop().time() - start >= 0.010
                os.write(process.stdin.fileno(), b"cut\n")
                with suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
                if end == "stdin":
                    process.stdin.close()
                else:
                    process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait, 5) == 0

    run(main)
