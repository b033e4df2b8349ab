"""The service over real sockets, with drafters that are coroutines; friendly ones and others."""

import asyncio
import os
import threading
import time
import tracemalloc
from contextlib import asynccontextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest
import zmq
import zmq.asyncio

from tests.verifier.fake_models import VOCAB_SIZE, FakeHome, FakeTarget, continuation, guess
from wanspec_kernels.keys import AllowList, generate, load_secret, secure_client
from wanspec_kernels.protocol import (
    MAX_MESSAGE_BYTES,
    Close,
    Commit,
    Draft,
    Error,
    ErrorCode,
    Hello,
    Open,
    Ping,
    Pong,
    Welcome,
    check_of,
    decode,
    encode,
)
from wanspec_kernels.tree import Expansion
from wanspec_kernels.verifier.endpoint import EndpointConfig
from wanspec_kernels.verifier.service import ServiceConfig, VerifierService
from wanspec_kernels.verifier.session import SessionConfig

VOCABULARY = bytes(range(32))
PROMPT = (3, 1, 4, 1, 5)
HELLO = Hello(VOCABULARY, "fake", 4, 256, 0)
WAIT_S = 20.0


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Secrets of the verifier, of enrolled drafters and of a stranger; the allow-list's folder."""
    folder = tmp_path_factory.mktemp("keys")
    enrolled = folder / "enrolled"
    enrolled.mkdir()
    secrets = {}
    for name in ("verifier", "stranger", "first", "second"):
        where = enrolled if name in ("first", "second") else folder
        secrets[name] = load_secret(generate(where, name))
    secrets["enrolled"] = AllowList(enrolled)
    return secrets


class SteppedTarget(FakeTarget):
    """Each pass waits for a permit, so that a test decides when it ends."""

    def __init__(self, stepped=False):
        super().__init__()
        self.permits = threading.Semaphore(0)
        self.stepped = stepped
        self.passes = 0

    def verify(self, request, tree):
        if self.stepped:
            assert self.permits.acquire(timeout=WAIT_S)
        self.passes += 1
        return super().verify(request, tree)

    def free(self):
        self.stepped = False
        self.permits.release()


class Dialler:
    """A drafter's end of the wire."""

    def __init__(self, socket):
        self.socket = socket

    async def say(self, message):
        await self.socket.send(message if isinstance(message, bytes) else encode(message))

    async def hear(self, *kinds):
        """The next message of these kinds; pings are answered."""
        while True:
            message = decode(await asyncio.wait_for(self.socket.recv(), WAIT_S))
            if isinstance(message, Ping):
                await self.say(Pong(message.clock_us, 0))
            if isinstance(message, kinds):
                return message

    async def join(self):
        await self.say(HELLO)
        return await self.hear(Welcome)

    async def draft_forever(self, skill=1.0, depth=6):
        rng = Random(1)
        text = []
        while True:
            message = await self.hear(Open, Commit, Close)
            match message:
                case Open():
                    text = list(message.token_ids)
                case Commit():
                    text += message.token_ids
                    assert check_of(text) == message.check
                case Close():
                    return
            await self.say(guess(rng, text, skill, depth, request=message.request))


def run(keys, scenario, *, target=None, home=None, config=None):
    async def main():
        context = zmq.asyncio.Context()

        @asynccontextmanager
        async def dial(name="first", public=None):
            socket = context.socket(zmq.DEALER)
            socket.linger = 0
            if name is not None:
                secure_client(socket, keys[name], public or keys["verifier"].public)
            socket.connect(service.address)
            try:
                yield Dialler(socket)
            finally:
                socket.close()

        service = VerifierService(
            target or FakeTarget(),
            vocabulary=VOCABULARY,
            vocab_size=VOCAB_SIZE,
            bind="tcp://127.0.0.1:*",
            secret=keys["verifier"],
            allowed=keys["enrolled"],
            home=home,
            config=config,
        )
        try:
            async with service:
                await scenario(service, dial)
        finally:
            context.destroy(linger=0)

    asyncio.run(asyncio.wait_for(main(), 2 * WAIT_S))


async def until(condition):
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0)


def test_a_drafter_helps_and_the_text_is_the_targets_own(keys):
    target = SteppedTarget(stepped=True)

    async def scenario(service, dial):
        async with dial() as drafter:
            await drafter.join()
            heard = []
            generation = asyncio.create_task(
                service.generate(PROMPT, max_tokens=60, on_tokens=lambda *a: heard.append(a))
            )
            drafting = asyncio.create_task(drafter.draft_forever())

            def heard_since(received):
                return service.counters["received"] > received or generation.done()

            while not generation.done():
                # A pass ends only once the drafts of the last commit are here, but for the late.
                await until(partial(heard_since, service.counters["received"]))
                target.permits.release()
            result = await generation
            await drafting
        assert result.token_ids == continuation(PROMPT, 60)
        assert [t for tokens, _ in heard for t in tokens] == result.token_ids
        assert result.finish_reason == "length"
        assert result.statistics.remote_tokens_accepted > 0
        assert result.source_names[next(s for s in result.sources if s)] == "first"
        assert result.statistics.target_passes < 60
        assert result.wire_bytes_per_token > 0

    run(keys, scenario, target=target)


def test_without_any_drafter_it_is_plain_decoding(keys):
    async def scenario(service, dial):
        result = await service.generate(PROMPT, max_tokens=20)
        assert result.token_ids == continuation(PROMPT, 20)
        assert result.statistics.target_passes == 20
        assert result.sources == [None] * 20

    run(keys, scenario)


def test_a_failing_home_drafter_is_asked_again(keys, caplog):
    home = FakeHome(failures=3)

    async def scenario(service, dial):
        result = await service.generate(PROMPT, max_tokens=40)
        assert result.token_ids == continuation(PROMPT, 40)
        assert result.statistics.home_failures == 3
        assert result.statistics.home_tokens_accepted > 0

    run(keys, scenario, home=home)
    assert len(home.opened) == 4
    assert "a draft failed" in caplog.text


def test_numbers_of_any_kind_reach_the_drafters(keys):
    """The wire takes Python's own alone, and a drafter that is not opened drafts nothing."""
    home = FakeHome()

    async def scenario(service, dial):
        result = await service.generate(
            PROMPT,
            max_tokens=10,
            temperature=Fraction(1, 2),
            top_k=np.int64(7),
            top_p=np.float32(0.5),
            seed=np.uint8(3),
        )
        assert result.statistics.home_failures == 0

    run(keys, scenario, home=home)
    opened = home.opened[0]
    assert (opened.temperature, opened.top_k, opened.top_p, opened.seed) == (0.5, 7, 0.5, 3)


def test_a_home_drafter_that_hangs_holds_nothing_up(keys):
    """Not its request, nor the next one, nor the service's end."""

    class Hangs(FakeHome):
        def draft(self, *args):
            hangs.wait(3 * WAIT_S)
            return super().draft(*args)

    hangs = threading.Event()

    async def scenario(service, dial):
        for _ in range(2):
            result = await service.generate(PROMPT, max_tokens=40)
            assert result.token_ids == continuation(PROMPT, 40)
            assert not result.statistics.home_failures

    try:
        run(keys, scenario, home=Hangs())
    finally:
        hangs.set()


def test_a_home_drafter_is_told_of_every_end(keys):
    class Counts(FakeHome):
        def close(self, request):
            super().close(request)
            closed.append(request)

    closed = []

    async def scenario(service, dial):
        for _ in range(2):
            await service.generate(PROMPT, max_tokens=40)

    home = Counts()
    run(keys, scenario, home=home)
    assert closed == [message.request for message in home.opened]
    assert closed


def test_a_failing_target_raises_and_the_next_request_goes_on(keys):
    class Breaks(FakeTarget):
        broken = True

        def verify(self, request, tree):
            if self.broken:
                raise RuntimeError("out of memory")
            return super().verify(request, tree)

    target = Breaks()

    async def scenario(service, dial):
        with pytest.raises(RuntimeError, match="out of memory"):
            await service.generate(PROMPT, max_tokens=5)
        assert target.texts == {}
        target.broken = False
        result = await service.generate(PROMPT, max_tokens=5)
        assert result.token_ids == continuation(PROMPT, 5)

    run(keys, scenario, target=target)


def test_close_ends_generations_running_and_queued(keys):
    target = SteppedTarget(stepped=True)

    async def scenario(service, dial):
        generation, queued = (
            asyncio.create_task(service.generate(PROMPT, max_tokens=5)) for _ in range(2)
        )
        await until(lambda: target.texts)
        closing = asyncio.create_task(service.close())
        await until(generation.cancelling)
        target.free()
        await closing
        assert generation.cancelled()
        assert queued.cancelled()
        assert target.texts == {}
        with pytest.raises(RuntimeError, match="closed"):
            await service.generate(PROMPT, max_tokens=5)

    run(keys, scenario, target=target)


def test_a_second_cancellation_leaves_nothing_at_the_target(keys):
    target = SteppedTarget(stepped=True)

    async def scenario(service, dial):
        generation = asyncio.create_task(service.generate(PROMPT, max_tokens=5))
        await until(lambda: target.texts)
        for _ in range(3):
            generation.cancel()
            await asyncio.sleep(0)
        target.free()
        with pytest.raises(asyncio.CancelledError):
            await generation
        assert target.texts == {}

    run(keys, scenario, target=target)


def test_a_drafter_that_leaves_between_requests_is_forgotten(keys):
    target = SteppedTarget(stepped=True)

    async def scenario(service, dial):
        async with dial() as drafter:
            await drafter.join()
            generation = asyncio.create_task(service.generate(PROMPT, max_tokens=20))
            drafting = asyncio.create_task(drafter.draft_forever())
            await until(lambda: service._estimates.paces)
            target.free()
            await generation
            await drafting
            await drafter.say(Hello(bytes(32), "another", 4, 256, 0))
            await until(lambda: not any(session.ready for session in service.sessions))
        assert not service._estimates.paces
        assert not service._estimates.usefulness._records

    run(keys, scenario, target=target)


@pytest.mark.parametrize("name", ["stranger", None])
def test_who_is_not_enrolled_is_refused(keys, name):
    async def scenario(service, dial):
        async with dial(name) as stranger, dial("first") as drafter:
            await stranger.say(HELLO)
            await drafter.join()
            if name is not None:
                await until(lambda: service._endpoint.num_refused > 0)
            result = await service.generate(PROMPT, max_tokens=5)
            assert result.token_ids == continuation(PROMPT, 5)
            assert [s.hello for s in service.sessions] == [HELLO]

    run(keys, scenario)


def test_another_vocabulary_is_refused_with_both_fingerprints(keys):
    async def scenario(service, dial):
        async with dial() as drafter:
            await drafter.say(Hello(bytes(32), "other", 1, 1, 0))
            error = await drafter.hear(Error)
            assert error.code == ErrorCode.VOCABULARY
            assert "0001020304050607" in error.message
            assert service.sessions == []

    run(keys, scenario)


def bomb(levels):
    return b"\x91" * levels + b"\xc0"


BAD = {
    "random bytes": Random(3).randbytes(300),
    "empty": b"",
    "truncated": encode(HELLO)[:-3],
    "nested bomb": bomb(100_000),
    "map bomb": b"\x81\xa1a" * 1000 + b"\xc0",
    "oversized": b"\xc4" * (MAX_MESSAGE_BYTES + 10),
    "another version": encode(HELLO).replace(b"\xa1v\x02", b"\xa1v\x09"),
    "before hello": encode(Draft(1, 1, 0, (1,), (-1,))),
}


@pytest.mark.parametrize("payload", BAD.values(), ids=BAD.keys())
def test_what_is_no_message_is_answered_and_the_generation_goes_on(keys, payload):
    target = SteppedTarget(stepped=True)

    async def scenario(service, dial):
        async with dial("first") as hostile, dial("second") as friend:
            await friend.join()
            generation = asyncio.create_task(service.generate(PROMPT, max_tokens=30))
            drafting = asyncio.create_task(friend.draft_forever())
            await hostile.say(payload)
            error = await hostile.hear(Error)
            assert error.code in (ErrorCode.MALFORMED, ErrorCode.VERSION, ErrorCode.UNEXPECTED)
            assert not generation.done()
            target.free()
            result = await generation
            await drafting
            assert result.token_ids == continuation(PROMPT, 30)
            # The same connection may still do better.
            await hostile.join()
            assert service.counters["internal_errors"] == 0

    run(keys, scenario, target=target)


def test_far_too_large_a_message_costs_the_connection_only(keys):
    async def scenario(service, dial):
        async with dial("first") as hostile, dial("second") as friend:
            await friend.join()
            before = service.counters["received"]
            await hostile.say(bytes(4 * MAX_MESSAGE_BYTES))
            result = await service.generate(PROMPT, max_tokens=10)
            assert result.token_ids == continuation(PROMPT, 10)
            await hostile.join()  # dials again by itself
            assert service.counters["received"] - before < 10

    run(keys, scenario)


def test_an_invalid_draft_quarantines_its_sender_alone(keys):
    target = SteppedTarget(stepped=True)

    async def scenario(service, dial):
        async with dial("first") as hostile, dial("second") as friend:
            await friend.join()
            await hostile.join()
            generation = asyncio.create_task(service.generate(PROMPT, max_tokens=30))
            drafting = asyncio.create_task(friend.draft_forever())
            opened = await hostile.hear(Open)
            draws = (Expansion(-1, (0,), (1,), (1,)),)  # there are none under `match`
            bad = Draft(opened.request, len(PROMPT), check_of(PROMPT), (1,), (-1,), draws)
            for _ in range(100):
                await hostile.say(bad)
            error = await hostile.hear(Error)
            assert "quarantined: expected no expansions under match" in error.message
            await hostile.say(HELLO)  # a new greeting does not end it
            assert "quarantined" in (await hostile.hear(Error)).message
            target.free()
            result = await generation
            await drafting
            assert result.token_ids == continuation(PROMPT, 30)
            assert result.statistics.outcomes["invalid"] == 1

    run(keys, scenario, target=target)


def test_a_token_past_the_vocabulary_costs_its_node_and_not_its_drafter(keys):
    target = SteppedTarget(stepped=True)

    async def scenario(service, dial):
        async with dial() as drafter:
            await drafter.join()
            generation = asyncio.create_task(service.generate(PROMPT, max_tokens=12))
            opened = await drafter.hear(Open)
            right = continuation(PROMPT, 8)
            tokens = (VOCAB_SIZE, right[0], VOCAB_SIZE + 63, *right[1:], 2**31 - 1)
            parents = (-1, -1, 1, 1, *range(3, len(tokens) - 1))
            await drafter.say(Draft(opened.request, len(PROMPT), check_of(PROMPT), tokens, parents))
            await until(lambda: sum(s.counters["drafts"] for s in service.sessions) == 1)
            target.free()
            result = await generation
            assert result.token_ids == continuation(PROMPT, 12)
            assert result.statistics.outcomes == {"new": 1}
            assert result.statistics.nodes_dropped == 3
            assert result.statistics.remote_tokens_accepted >= 7  # the first pass may be under way
            assert service.sessions[0].ready

    run(keys, scenario, target=target)


def test_a_new_hello_of_the_same_key_supersedes_the_old_session(keys):
    target = SteppedTarget(stepped=True)

    async def scenario(service, dial):
        async with dial() as old, dial() as new, dial("second") as other:
            await old.join()
            await other.join()
            generation = asyncio.create_task(service.generate(PROMPT, max_tokens=5))
            await old.hear(Open)
            await new.join()
            assert (await old.hear(Error)).code == ErrorCode.SUPERSEDED
            opened = await new.hear(Open)
            assert opened.token_ids == PROMPT
            assert len(service.sessions) == 2
            target.free()
            assert (await generation).token_ids == continuation(PROMPT, 5)

    run(keys, scenario, target=target)


def test_a_late_joiner_is_asked_for_the_running_request(keys):
    target = SteppedTarget(stepped=True)

    async def scenario(service, dial):
        generation = asyncio.create_task(service.generate(PROMPT, max_tokens=6))
        target.permits.release()
        target.permits.release()
        await until(lambda: target.passes == 2)
        async with dial() as drafter:
            await drafter.join()
            opened = await drafter.hear(Open)
            assert opened.token_ids[: len(PROMPT) + 1] == (*PROMPT, continuation(PROMPT, 1)[0])
            target.free()
            await generation
            assert (await drafter.hear(Close)).request == opened.request

    run(keys, scenario, target=target)


def test_a_drafter_that_stops_reading_blocks_nothing_and_is_given_up(keys):
    session = SessionConfig(heartbeat_ms=40)
    config = ServiceConfig(endpoint=EndpointConfig(session=session, send_queue=4))

    async def scenario(service, dial):
        async with dial() as drafter:
            drafter.socket.rcvhwm = 1
            await drafter.join()
            result = await service.generate(PROMPT, max_tokens=3000)
            assert result.token_ids == continuation(PROMPT, 3000)
            await until(lambda: not service.sessions)
            assert service.counters["sessions_dead"] == 1

    run(keys, scenario, config=config)


def test_a_keys_rate_is_bounded_whatever_it_says_and_however_often_it_greets(keys):
    target = SteppedTarget(stepped=True)
    config = ServiceConfig(endpoint=EndpointConfig(max_messages_per_s=50.0))

    async def scenario(service, dial):
        async with dial("first") as hostile, dial("second") as friend:
            await friend.join()
            generation = asyncio.create_task(service.generate(PROMPT, max_tokens=30))
            drafting = asyncio.create_task(friend.draft_forever())
            began = time.monotonic()
            for payload in (HELLO, b"\xc1", encode(Ping(1, 0))) * 300:
                await hostile.say(payload)
                while await hostile.socket.poll(0):
                    await hostile.socket.recv()
            await until(lambda: service.counters["received"] > 900)
            heard = service.counters["received"] - service.counters["over_rate"]
            assert heard <= 2 * (2 * 50 + 50 * (time.monotonic() - began + 1))
            assert service.counters["over_rate"] > 0
            target.free()
            result = await generation
            await drafting
            assert result.token_ids == continuation(PROMPT, 30)

    run(keys, scenario, target=target, config=config)


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1", "nonsense", "in use"])
def test_an_address_that_cannot_be_bound_is_an_os_error(keys, bind):
    async def scenario(service, dial):
        other = VerifierService(
            FakeTarget(),
            vocabulary=VOCABULARY,
            vocab_size=VOCAB_SIZE,
            bind=service.address if bind == "in use" else bind,
            secret=keys["verifier"],
            allowed=keys["enrolled"],
        )
        with pytest.raises(OSError, match="cannot bind"):
            await other.start()
        await other.close()

    run(keys, scenario)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_stays_flat_under_a_flood(keys):
    config = ServiceConfig(endpoint=EndpointConfig(max_messages_per_s=1e9))  # all of it is read

    async def scenario(service, dial):
        async with dial("first") as hostile, dial("second") as friend:
            await friend.join()
            oversized = BAD["oversized"]
            bad = [payload for payload in BAD.values() if payload is not oversized]

            def refused():
                return service.counters["malformed"] + service.counters["before_hello"]

            async def flood(count):
                expected = refused() + count
                for i in range(count):
                    await hostile.say(oversized if i % 100 == 0 else bad[i % len(bad)])
                    while i % 50 == 0 and await hostile.socket.poll(0):
                        await hostile.socket.recv()
                await until(lambda: refused() == expected)

            await flood(500)
            resident_before = resident_bytes()
            tracemalloc.start()
            before = tracemalloc.take_snapshot()
            await flood(5000)
            grown = sum(
                s.size_diff for s in tracemalloc.take_snapshot().compare_to(before, "filename")
            )
            tracemalloc.stop()
            assert grown < 2 * MAX_MESSAGE_BYTES
            # tracemalloc does not see libzmq, whose queues hold up to 64 messages of a peer.
            assert resident_bytes() - resident_before < 64 << 20
            assert service.counters["internal_errors"] == 0
            result = await service.generate(PROMPT, max_tokens=10)
            assert result.token_ids == continuation(PROMPT, 10)

    run(keys, scenario, config=config)


def test_a_socket_needs_keys():
    with pytest.raises(ValueError, match="expected a secret key and an allow-list"):
        VerifierService(
            FakeTarget(), vocabulary=VOCABULARY, vocab_size=VOCAB_SIZE, bind="tcp://127.0.0.1:*"
        )
