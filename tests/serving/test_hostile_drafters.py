"""Drafters that lie, flood and come back, over real sockets: the text and the others go on."""

import asyncio
import json
import os
import sys
import time
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.serving.dialler import HELLO, PROMPT, WAIT_S, SteppedTarget, run, until
from tests.serving.fake_models import continuation, guess
from tests.wire.test_round_trip import largest_draft
from wanspec_kernels.drafts.admission import AdmissionConfig, Refusal
from wanspec_kernels.serving.endpoint import EndpointConfig
from wanspec_kernels.serving.service import ServiceConfig
from wanspec_kernels.tree import Expansion
from wanspec_kernels.wire import (
    MAX_MESSAGE_BYTES,
    Draft,
    Error,
    ErrorCode,
    Open,
    Ping,
    Pong,
    Welcome,
    check_of,
    encode,
)
from wanspec_kernels.wire.sampling import Sampling

READS_ALL = AdmissionConfig(1e9, 1e9, 1e9, max_malformed=10**9)
BAD = {
    "random bytes": Random(3).randbytes(300),
    "empty": b"",
    "truncated": encode(HELLO)[:-3],
    "nested bomb": b"\x91" * 3000 + b"\xc0",
    "map bomb": b"\x81\xa1a" * 1000 + b"\xc0",
    "oversized": b"\xc4" * (MAX_MESSAGE_BYTES + 10),
    "another version": encode(HELLO).replace(b"\xa1v\x02", b"\xa1v\x09"),
    "before hello": encode(Draft(1, 1, 0, (1,), (-1,))),
}


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


def invalid(request):
    """A good message, with draws that no request under `match` has, and none of four draws."""
    draws = (Expansion(-1, (0,), (1,), (1,)),)
    return Draft(request, len(PROMPT), check_of(PROMPT), (1,), (-1,), draws)


def test_an_invalid_draft_quarantines_its_sender_alone(keys):
    target = SteppedTarget(stepped=True)

    async def scenario(service, dial):
        async with dial("first") as hostile, dial("second") as friend:
            await friend.join()
            await hostile.join()
            generation = asyncio.create_task(service.generate(PROMPT, max_tokens=30))
            drafting = asyncio.create_task(friend.draft_forever())
            opened = await hostile.hear(Open)
            bad = invalid(opened.request)
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


def test_a_keys_rate_is_bounded_whatever_it_says_and_however_often_it_greets(keys):
    target = SteppedTarget(stepped=True)
    slow = AdmissionConfig(max_messages_per_s=50.0, max_malformed=10**9)
    config = ServiceConfig(endpoint=EndpointConfig(admission=slow))

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
            heard = service.counters["received"] - num_refused(service)
            assert heard <= 2 * (2 * 50 + 50 * (time.monotonic() - began + 1))
            assert service.counters["over_rate"] > 0
            target.free()
            result = await generation
            await drafting
            assert result.token_ids == continuation(PROMPT, 30)

    run(keys, scenario, target=target, config=config)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_stays_flat_under_a_flood(keys):
    config = ServiceConfig(endpoint=EndpointConfig(admission=READS_ALL))

    async def scenario(service, dial):
        async with dial("first") as hostile, dial("second") as friend:
            await friend.join()
            oversized = BAD["oversized"]
            bad = [payload for payload in BAD.values() if payload is not oversized]

            def refused():
                kinds = ("malformed", "before_hello", "other_version")
                return sum(service.counters[kind] for kind in kinds)

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


def heard_since(service, received):
    return service.counters["received"] > received


def num_refused(service):
    """Messages dropped unread."""
    return sum(service.counters[refusal.value] for refusal in Refusal)


async def until_idly(condition):
    """Without taking the loop's time, which is measured."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def flood(service, keys, frames, *, seconds=1.5, frames_a_connection=10**9):
    """A process floods; how many frames it sent, and our thread's share of a core meanwhile."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("flooder.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    orders = {
        "address": service.address,
        "public": keys["first"].public.decode(),
        "secret": keys["first"].secret.decode(),
        "server": keys["verifier"].public.decode(),
        "frames": [frame.hex() for frame in (encode(HELLO), *frames)],
        "seconds": seconds,
        "frames_a_connection": frames_a_connection,
    }
    began_s = time.thread_time()
    out, _ = await process.communicate(json.dumps(orders).encode())
    assert process.returncode == 0
    return int(out), (time.thread_time() - began_s) / seconds


# Of requests that nobody opened.
LONG = guess(Random(1), PROMPT, 1.0, 60, request=10**6)
LARGEST = encode(largest_draft())  # which a drafter may send under `rejection`
FLOODS = {
    "pings": ("match", encode(Ping(1, 0))),
    "drafts of another request": ("match", encode(LONG)),
    "drafts too large for match": ("match", LARGEST),
    "large drafts": ("rejection", LARGEST),
    "garbage": ("match", b"\xc1" * 1000),
    "messages too large": ("rejection", b"\xc4" * (MAX_MESSAGE_BYTES + 1)),
    "greetings": ("match", encode(HELLO)),
    "greetings of another vocabulary": ("match", encode(replace(HELLO, vocabulary=bytes(32)))),
    "pings in quarantine": ("match", encode(Ping(1, 0))),
    "large drafts in quarantine": ("rejection", LARGEST),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_takes_little_of_the_loop_and_others_are_heard(keys, name):
    target = SteppedTarget(stepped=True)
    rule, frame = FLOODS[name]

    async def scenario(service, dial):
        async with dial("second") as friend:
            await friend.join()
            generation = asyncio.create_task(
                service.generate(PROMPT, max_tokens=30, sampling=Sampling(rule=rule))
            )
            opened = await friend.hear(Open)
            if "in quarantine" in name:
                async with dial("first") as hostile:
                    await hostile.join()
                    await hostile.hear(Open)
                    await hostile.say(invalid(opened.request))
                    await hostile.hear(Error)
            flooding = asyncio.create_task(flood(service, keys, [frame]))
            refused = partial(num_refused, service)
            before = refused()
            # What keeps within its share is not refused.
            await until_idly(lambda: refused() > before or flooding.done())
            await friend.say(guess(Random(1), PROMPT, 1.0, 6, request=opened.request))
            await friend.say(Ping(1, 0))
            await friend.hear(Pong)
            sent, share = await flooding
            assert sent > 100
            assert share < 0.2
            assert service.counters["internal_errors"] == 0
            target.free()
            result = await generation
            assert result.token_ids == continuation(PROMPT, 30)
            if rule == "match":
                assert result.statistics.remote_tokens_accepted > 0

    run(keys, scenario, target=target)


def test_quarantine_outlasts_connections_and_ends(keys):
    target = SteppedTarget(stepped=True)
    config = ServiceConfig(endpoint=EndpointConfig(admission=AdmissionConfig(quarantine_ms=500.0)))

    async def scenario(service, dial):
        async with dial() as hostile, dial() as another:
            await hostile.join()
            generation = asyncio.create_task(service.generate(PROMPT, max_tokens=3))
            opened = await hostile.hear(Open)
            await hostile.say(invalid(opened.request))
            assert "quarantined: expected no expansions" in (await hostile.hear(Error)).message
            began = time.monotonic()
            assert service.sessions == []
            # A connection that was there before is no way around.
            await another.say(HELLO)
            assert "quarantined for" in (await another.hear(Error)).message
        while not service.sessions:
            async with dial() as again:
                received = service.counters["received"]
                await again.say(HELLO)
                await until(partial(heard_since, service, received))
        assert time.monotonic() - began >= 0.5
        target.free()
        assert (await generation).token_ids == continuation(PROMPT, 3)

    run(keys, scenario, target=target, config=config)


def test_malformed_messages_add_up_over_connections(keys):
    async def scenario(service, dial):
        for number in (4, 3):
            async with dial() as hostile:
                await hostile.join()
                for _ in range(number):
                    await hostile.say(b"\xc1")
                    assert "expected a msgpack map" in (await hostile.hear(Error)).message
        async with dial() as hostile:
            await hostile.join()
            await hostile.say(encode(Welcome(1, 1, 1, 1024)))  # not a drafter's to send
            await hostile.hear(Error)
            assert "too many malformed" in (await hostile.hear(Error)).message
            await hostile.say(HELLO)
            assert "quarantined for" in (await hostile.hear(Error)).message
            assert service.counters["malformed"] == 8

    run(keys, scenario)


def test_what_is_too_large_to_be_of_use_is_no_offence(keys):
    """Drafts of a request under `rejection` may be on their way when it has ended."""

    async def scenario(service, dial):
        async with dial() as drafter:
            await drafter.join()
            for _ in range(20):
                await drafter.say(LARGEST)
            await drafter.say(Ping(1, 0))
            await drafter.hear(Pong)
            assert service.counters["over_size"] == 20
            assert service.counters["malformed"] == 0

    run(keys, scenario)
