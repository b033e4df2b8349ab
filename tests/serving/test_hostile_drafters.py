"""Drafters that lie, flood and come back, over real sockets: the texts and the others go on."""

import asyncio
import json
import os
import sys
import time
import tracemalloc
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import msgpack
import pytest

from tests.serving.dialler import HELLO, PROMPT, at_work, run, text_of, texts_are_right, until
from tests.serving.fake_models import WAIT_S, FakeRunner, continuation, guess
from tests.wire.test_round_trip import largest_draft
from wanspec_kernels.drafts.admission import AdmissionConfig, Refusal
from wanspec_kernels.drafts.exchange import ExchangeConfig
from wanspec_kernels.tree import Expansion
from wanspec_kernels.wire import (
    MAX_MESSAGE_BYTES,
    VERSION,
    Draft,
    Error,
    ErrorCode,
    Open,
    Ping,
    Pong,
    Welcome,
    check_of,
    encode,
    encode_frame,
)
from wanspec_kernels.wire.sampling import Sampling

READS_ALL = AdmissionConfig(1e9, 1e9, 1e9, max_malformed=10**9)
OLD_HELLO = msgpack.packb({"v": 2, "t": "hello", "mo": "of version 2"})
BAD = {
    "random bytes": Random(3).randbytes(300),
    "empty": b"",
    "truncated": encode_frame([HELLO])[:-3],
    "nested bomb": b"\x91" * 3000 + b"\xc0",
    "map bomb": b"\x81\xa1a" * 1000 + b"\xc0",
    "oversized": b"\xc4" * (MAX_MESSAGE_BYTES + 10),
    "another version": encode_frame([HELLO]).replace(b"\xa1v\x03", b"\xa1v\x09"),
    "version 2": OLD_HELLO,
    "before hello": encode_frame([Draft(1, 1, 0, (1,), (-1,))]),
}


@pytest.mark.parametrize("name", ["stranger", None])
def test_who_is_not_enrolled_is_refused(keys, name):
    async def scenario(verifier, dial):
        async with dial(name) as stranger, dial("first") as drafter:
            await stranger.say(HELLO)
            await drafter.join()
            if name is not None:
                await until(lambda: verifier.drafters.num_refused > 0)
            await texts_are_right(verifier.submit_many(4, 5))
            assert [s.hello for s in verifier.sessions] == [HELLO]

    run(keys, scenario)


@pytest.mark.parametrize("payload", BAD.values(), ids=BAD.keys())
def test_what_is_no_message_is_answered_and_the_requests_go_on(keys, payload):
    runner = FakeRunner(stepped=True)

    async def scenario(verifier, dial):
        async with dial("first") as hostile, dial("second") as friend:
            await friend.join()
            submitted = verifier.submit_many(4)
            drafting = asyncio.create_task(friend.draft_forever())
            await hostile.say(payload)
            error = await hostile.hear(Error)
            assert error.code in (ErrorCode.MALFORMED, ErrorCode.VERSION, ErrorCode.UNEXPECTED)
            assert verifier.scheduler.num_active == 4
            runner.free()
            await texts_are_right(submitted)
            assert not drafting.done()
            drafting.cancel()
            # The same connection may still do better.
            await hostile.join()
            assert verifier.counters["internal_errors"] == 0

    run(keys, scenario, runner=runner)


def test_far_too_large_a_message_costs_the_connection_only(keys):
    async def scenario(verifier, dial):
        async with dial("first") as hostile, dial("second") as friend:
            await friend.join()
            before = verifier.counters["received"]
            await hostile.say(bytes(4 * MAX_MESSAGE_BYTES))
            await texts_are_right(verifier.submit_many(4, 10))
            await hostile.join()  # dials again by itself
            assert verifier.counters["received"] - before < 10

    run(keys, scenario)


def framed(parts):
    """A frame of what may be no messages."""
    body = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return msgpack.packb({"v": VERSION, "m": body})


def invalid(opened):
    """A good message, with draws that no request under `match` has, and none of four draws."""
    draws = (Expansion(-1, (0,), (1,), (1,)),)
    text = opened.token_ids
    return Draft(opened.request, len(text), check_of(text), (1,), (-1,), draws)


def test_an_invalid_draft_quarantines_its_sender_alone(keys):
    runner = FakeRunner(stepped=True)

    async def scenario(verifier, dial):
        async with dial("first") as hostile, dial("second") as friend:
            await friend.join()
            await hostile.join()
            submitted = verifier.submit_many(4)
            drafting = asyncio.create_task(friend.draft_forever())
            opened = await hostile.hear(Open)
            bad = invalid(opened)
            for _ in range(100):
                await hostile.say(bad)
            error = await hostile.hear(Error)
            assert "quarantined: expected no expansions under match" in error.message
            await hostile.say(HELLO)  # a new greeting does not end it
            assert "quarantined" in (await hostile.hear(Error)).message
            runner.free()
            await texts_are_right(submitted)
            assert not drafting.done()
            drafting.cancel()
            found = [stream.statistics.outcomes["invalid"] for stream, _ in submitted]
            assert sorted(found) == [0, 0, 0, 1]

    run(keys, scenario, runner=runner)


def test_a_keys_rate_is_bounded_whatever_it_says_and_however_often_it_greets(keys):
    runner = FakeRunner(stepped=True)
    slow = AdmissionConfig(max_messages_per_s=50.0, max_malformed=10**9)
    config = ExchangeConfig(admission=slow)

    async def scenario(verifier, dial):
        async with dial("first") as hostile, dial("second") as friend:
            await friend.join()
            submitted = verifier.submit_many(4)
            drafting = asyncio.create_task(friend.draft_forever())
            began = time.monotonic()
            for payload in (HELLO, b"\xc1", encode_frame([Ping(1, 0)])) * 300:
                await hostile.say(payload)
                while await hostile.socket.poll(0):
                    await hostile.socket.recv()
            await until(lambda: verifier.counters["received"] > 900)
            heard = verifier.counters["received"] - num_refused(verifier)
            assert heard <= 2 * (2 * 50 + 50 * (time.monotonic() - began + 1))
            assert verifier.counters["over_rate"] > 0
            runner.free()
            await texts_are_right(submitted)
            assert not drafting.done()
            drafting.cancel()

    run(keys, scenario, runner=runner, config=config)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_stays_flat_under_a_flood(keys):
    config = ExchangeConfig(admission=READS_ALL)

    async def scenario(verifier, dial):
        async with dial("first") as hostile, dial("second") as friend:
            await friend.join()
            oversized = BAD["oversized"]
            bad = [payload for payload in BAD.values() if payload is not oversized]

            def refused():
                kinds = ("malformed", "before_hello", "other_version")
                return sum(verifier.counters[kind] for kind in kinds)

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
            assert verifier.counters["internal_errors"] == 0
            await texts_are_right(verifier.submit_many(4, 10))

    run(keys, scenario, config=config)


def heard_since(verifier, received):
    return verifier.counters["received"] > received


def num_refused(verifier):
    """Messages dropped unread."""
    return sum(verifier.counters[refusal.value] for refusal in Refusal)


async def until_idly(condition):
    """Without taking the loop's time, which is measured."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def flood(verifier, keys, frames, *, seconds=1.5, frames_a_connection=10**9):
    """A process floods; how many frames it sent, and our thread's share of a core meanwhile."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("flooder.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    orders = {
        "address": verifier.drafters.address,
        "public": keys["first"].public.decode(),
        "secret": keys["first"].secret.decode(),
        "server": keys["verifier"].public.decode(),
        "frames": [frame.hex() for frame in (encode_frame([HELLO]), *frames)],
        "seconds": seconds,
        "frames_a_connection": frames_a_connection,
    }
    began_s = time.thread_time()
    out, _ = await process.communicate(json.dumps(orders).encode())
    assert process.returncode == 0
    return int(out), (time.thread_time() - began_s) / seconds


@asynccontextmanager
async def three_drafters_and_eight_requests(verifier, dial):
    """One drafter is hostile, and the others draft rightly; all passes but the first are free."""
    async with dial("first") as hostile, dial("second") as near, dial("third") as far:
        for drafter in (hostile, near, far):
            await drafter.join()
        await until(lambda: len(verifier.sessions) == 3)
        submitted = verifier.submit_many(8, 40)
        async with at_work(near.draft_forever()), at_work(far.draft_forever()):
            yield hostile, submitted
    verifier.check_nothing_is_left()


@pytest.mark.parametrize("lie", ["wrong tokens", "another text", "invalid"])
def test_one_liar_among_three_costs_eight_requests_nothing_but_its_own_drafts(keys, lie):
    """Each request is drafted for by somebody honest, and gets from that one what it should."""
    runner = FakeRunner(stepped=True)

    async def scenario(verifier, dial):
        async with three_drafters_and_eight_requests(verifier, dial) as (hostile, submitted):
            opened = await hostile.hear(Open)
            for number in range(200):
                honest = guess(Random(number), opened.token_ids, 0.0, 6, request=opened.request)
                match lie:
                    case "wrong tokens":
                        await hostile.say(honest)
                    case "another text":
                        await hostile.say(replace(honest, base_check=honest.base_check ^ 1))
                    case "invalid":
                        await hostile.say(invalid(opened))
            text = verifier.exchange.texts[opened.request]
            await until(lambda: text.outcomes.total() >= (1 if lie == "invalid" else 3))
            if lie == "invalid":
                await until(lambda: len(verifier.sessions) == 2)
            # Whoever is honest has drafted for every request.
            honest = {s.source for s in verifier.sessions if s.key != keys["first"].public.decode()}
            await until(
                lambda: all(
                    t.outcomes["new"] and t.pool.enrolled & honest
                    for t in verifier.exchange.texts.values()
                )
            )
            runner.free()
            await texts_are_right(submitted)
            remote = [stream.statistics.remote_tokens_accepted for stream, _ in submitted]
            assert all(remote), remote
            assert (verifier.counters["sessions_quarantined"] == 1) == (lie == "invalid")
            assert verifier.counters["internal_errors"] == 0

    run(keys, scenario, runner=runner)


def test_a_drafter_that_floods_one_request_does_not_starve_the_others(keys):
    """What it is asked for it drafts without end, for one request; others' drafts are all read."""
    runner = FakeRunner(stepped=True)

    async def scenario(verifier, dial):
        async with three_drafters_and_eight_requests(verifier, dial) as (hostile, submitted):
            opened = await hostile.hear(Open)
            wide = [
                encode_frame(
                    [
                        guess(
                            Random(n), opened.token_ids, 1.0, 12, request=opened.request, branches=9
                        )
                    ]
                )
                for n in range(20)
            ]
            refused = num_refused(verifier)
            flooding = asyncio.create_task(flood(verifier, keys, wide))
            await until_idly(lambda: num_refused(verifier) > refused or flooding.done())
            texts = verifier.exchange.texts
            honest = {s.source for s in verifier.sessions if s.key != keys["first"].public.decode()}
            await until_idly(lambda: all(t.replies._newest.keys() & honest for t in texts.values()))
            sent, share = await flooding
            assert sent > 100
            assert share < 0.2
            runner.free()
            await texts_are_right(submitted)
            remote = [stream.statistics.remote_tokens_accepted for stream, _ in submitted]
            assert all(remote), remote
            assert verifier.counters["internal_errors"] == 0

    run(keys, scenario, runner=runner)


# Of requests that nobody opened.
LONG = guess(Random(1), PROMPT, 1.0, 60, request=10**6)
OTHER_HELLO = replace(HELLO, vocabulary=bytes(32))
LARGEST = encode_frame([largest_draft()])  # which a drafter may send under `rejection`
FLOODS = {
    "pings": ("match", encode_frame([Ping(1, 0)])),
    "drafts of another request": ("match", encode_frame([LONG])),
    "drafts too large for match": ("match", LARGEST),
    "large drafts": ("rejection", LARGEST),
    "garbage": ("match", b"\xc1" * 1000),
    "messages too large": ("rejection", b"\xc4" * (MAX_MESSAGE_BYTES + 1)),
    "greetings": ("match", encode_frame([HELLO])),
    "greetings of another vocabulary": ("match", encode_frame([OTHER_HELLO])),
    "pings in quarantine": ("match", encode_frame([Ping(1, 0)])),
    "large drafts in quarantine": ("rejection", LARGEST),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_takes_little_of_the_loop_and_others_are_heard(keys, name):
    runner = FakeRunner(stepped=True)
    rule, frame = FLOODS[name]

    async def scenario(verifier, dial):
        async with dial("second") as friend:
            await friend.join()
            stream = verifier.submit(sampling=Sampling(rule=rule))
            opened = await friend.hear(Open)
            if "in quarantine" in name:
                async with dial("first") as hostile:
                    await hostile.join()
                    await hostile.hear(Open)
                    await hostile.say(invalid(opened))
                    await hostile.hear(Error)
            flooding = asyncio.create_task(flood(verifier, keys, [frame]))
            refused = partial(num_refused, verifier)
            before = refused()
            # What keeps within its share is not refused.
            await until_idly(lambda: refused() > before or flooding.done())
            await friend.say(guess(Random(1), PROMPT, 1.0, 6, request=opened.request))
            await friend.say(Ping(1, 0))
            await friend.hear(Pong)
            sent, share = await flooding
            assert sent > 100
            assert share < 0.2
            assert verifier.counters["internal_errors"] == 0
            runner.free()
            assert await text_of(stream) == continuation(PROMPT, 30)
            if rule == "match":
                assert stream.statistics.remote_tokens_accepted > 0

    run(keys, scenario, runner=runner)


def test_quarantine_outlasts_connections_and_ends(keys):
    runner = FakeRunner(stepped=True)
    config = ExchangeConfig(admission=AdmissionConfig(quarantine_ms=500.0))

    async def scenario(verifier, dial):
        async with dial() as hostile, dial() as another:
            await hostile.join()
            stream = verifier.submit(max_tokens=3)
            opened = await hostile.hear(Open)
            await hostile.say(invalid(opened))
            assert "quarantined: expected no expansions" in (await hostile.hear(Error)).message
            began = time.monotonic()
            assert verifier.sessions == []
            # A connection that was there before is no way around.
            await another.say(HELLO)
            assert "quarantined for" in (await another.hear(Error)).message
        while not verifier.sessions:
            async with dial() as again:
                received = verifier.counters["received"]
                await again.say(HELLO)
                await until(partial(heard_since, verifier, received))
        assert time.monotonic() - began >= 0.5
        runner.free()
        assert await text_of(stream) == continuation(PROMPT, 3)

    run(keys, scenario, runner=runner, config=config)


def test_malformed_messages_add_up_over_connections(keys):
    async def scenario(verifier, dial):
        for number in (4, 3):
            async with dial() as hostile:
                await hostile.join()
                for _ in range(number):
                    await hostile.say(b"\xc1")
                    assert "expected a msgpack map" in (await hostile.hear(Error)).message
        async with dial() as hostile:
            await hostile.join()
            await hostile.say(encode_frame([Welcome(1, 1, 1, 1024)]))  # not a drafter's to send
            await hostile.hear(Error)
            assert "too many malformed" in (await hostile.hear(Error)).message
            await hostile.say(HELLO)
            assert "quarantined for" in (await hostile.hear(Error)).message
            assert verifier.counters["malformed"] == 8

    run(keys, scenario)


def test_a_bad_message_costs_its_frame_nothing_else_and_a_quarantine_all(keys):
    async def scenario(verifier, dial):
        async with dial() as hostile:
            await hostile.join()
            good, bad = encode(Ping(1, 0)), b"\xc1"
            await hostile.say(framed([bad, good]))
            assert "expected a msgpack map" in (await hostile.hear(Error)).message
            await hostile.hear(Pong)
            assert verifier.counters["malformed"] == 1
            await hostile.say(framed([bad] * 20 + [good]))
            while "too many malformed" not in (await hostile.hear(Error)).message:
                pass
            assert verifier.counters["malformed"] == 8
            await hostile.say(HELLO)
            assert "quarantined for" in (await hostile.hear(Error, Pong)).message

    run(keys, scenario)


def test_what_is_too_large_to_be_of_use_is_no_offence(keys):
    """Drafts of a request under `rejection` may be on their way when it has ended."""

    async def scenario(verifier, dial):
        async with dial() as drafter:
            await drafter.join()
            for _ in range(20):
                await drafter.say(LARGEST)
            await drafter.say(Ping(1, 0))
            await drafter.hear(Pong)
            assert verifier.counters["over_size"] == 20
            assert verifier.counters["malformed"] == 0

    run(keys, scenario)
