"""The engine and its drafters' socket, over real sockets, with drafters that are coroutines."""

import asyncio
import threading

import pytest

from tests.serving.dialler import (
    HELLO,
    PROMPT,
    Verifier,
    at_work,
    run,
    text_of,
    texts_are_right,
    until,
)
from tests.serving.fake_models import (
    VOCAB_SIZE,
    WAIT_S,
    FakeHome,
    FakeRunner,
    continuation,
)
from wanspec_kernels.drafts.exchange import ExchangeConfig
from wanspec_kernels.drafts.session import SessionConfig
from wanspec_kernels.engine.stream import PassFailedError
from wanspec_kernels.serving.drafters import check_bind
from wanspec_kernels.wire import Close, Draft, Error, ErrorCode, Hello, Open, check_of


def test_two_drafters_help_eight_requests_whose_texts_are_the_targets_own(keys):
    runner = FakeRunner(stepped=True)

    async def scenario(verifier, dial):
        async with dial() as first, dial("second") as second:
            await first.join()
            await second.join()
            submitted = verifier.submit_many(8, 60)
            async with at_work(first.draft_forever()), at_work(second.draft_forever()):
                seen, sequences = verifier.counters["received"], verifier.scheduler.sequences
                while sequences:
                    # A pass ends only once something was heard since the last one.
                    await until(lambda since=seen: verifier.counters["received"] > since)
                    seen = verifier.counters["received"]
                    passes = runner.passes
                    runner.permits.release()
                    await until(lambda before=passes: runner.passes > before or not sequences)
                await texts_are_right(submitted)
            statistics = [stream.statistics for stream, _ in submitted]
            assert all(s.remote_tokens_accepted > 0 for s in statistics)
            assert sum(s.target_passes for s in statistics) < 8 * 60
            assert all(s.wire_bytes_sent > 0 and s.wire_bytes_received > 0 for s in statistics)
            await until(lambda: not verifier.exchange._stale)
            verifier.check_nothing_is_left()

    run(keys, scenario, runner=runner)


def test_without_any_drafter_it_is_plain_decoding(keys):
    async def scenario(verifier, dial):
        text, statistics = await verifier.text(max_tokens=20)
        assert text == continuation(PROMPT, 20)
        assert statistics.target_passes == 20
        assert statistics.rows == 20

    run(keys, scenario)


def test_a_home_drafter_that_fails_is_asked_again_and_logged_once_a_request(keys, caplog):
    home = FakeHome(skill=1.0, failures=3)

    async def scenario(verifier, dial):
        text, statistics = await verifier.text(max_tokens=40)
        assert text == continuation(PROMPT, 40)
        assert statistics.home_failures == 3
        assert statistics.home_tokens_accepted > 0

    run(keys, scenario, home=home)
    assert len(home.opened) == 4
    assert caplog.text.count("Traceback") == 1
    assert not home.known


def test_a_home_drafter_that_always_fails_costs_nothing_but_its_drafts(keys, caplog):
    async def scenario(verifier, dial):
        for _ in range(2):
            submitted = verifier.submit_many(4, 20)
            await texts_are_right(submitted)
            assert all(s.statistics.target_passes == 20 for s, _ in submitted)
        assert sum(s.statistics.home_failures for s, _ in submitted) > 1
        verifier.check_nothing_is_left()

    run(keys, scenario, home=FakeHome(failures=10**6))
    # The four are asked for in as many passes as there are moments at which they are submitted.
    assert 2 <= caplog.text.count("Traceback") <= 8


def test_a_home_drafter_that_hangs_holds_nothing_up(keys):
    """Neither its requests, nor the next ones, nor the engine's end."""

    class Hangs(FakeHome):
        def draft_all(self, jobs):
            hangs.wait(3 * WAIT_S)
            return super().draft_all(jobs)

    hangs = threading.Event()

    async def scenario(verifier, dial):
        for _ in range(2):
            submitted = verifier.submit_many(4, 40)
            await texts_are_right(submitted)
            assert not any(s.statistics.home_failures for s, _ in submitted)

    try:
        run(keys, scenario, home=Hangs())
    finally:
        hangs.set()


@pytest.mark.parametrize("where", ["launch", "result"])
def test_a_pass_that_fails_ends_its_requests_and_the_next_go_on(keys, where):
    class Breaks(FakeRunner):
        broken = None

        def launch(self, plan):
            super().launch(plan)
            if self.broken == "launch":
                raise RuntimeError("out of memory")

        def result(self):
            if self.broken == "result":
                raise RuntimeError("out of memory")
            return super().result()

    runner = Breaks()

    async def scenario(verifier, dial):
        async with dial() as drafter:
            await drafter.join()
            runner.broken = where
            stream = verifier.submit()
            with pytest.raises(PassFailedError) as caught:
                await text_of(stream)
            assert "out of memory" in str(caught.value.__cause__)
            runner.broken = None
            assert (await verifier.text(max_tokens=5))[0] == continuation(PROMPT, 5)
            verifier.check_nothing_is_left()

    run(keys, scenario, runner=runner)


def test_a_drafter_that_leaves_between_requests_is_forgotten(keys):
    async def scenario(verifier, dial):
        sources = verifier.exchange.sources
        async with dial() as drafter:
            await drafter.join()
            async with at_work(drafter.draft_forever()):
                runner = verifier.runner
                runner.stepped = True
                stream = verifier.submit(max_tokens=20)
                await until(lambda: sources.paces)
                runner.free()
                await text_of(stream)
            await drafter.say(Hello(bytes(32), "another", 4, 256, 0))
            await until(lambda: not verifier.sessions)
        assert not sources.paces
        assert not sources.usefulness._records
        assert not sources.worths._of.keys() - {0}

    run(keys, scenario)


def test_another_vocabulary_is_refused_with_both_fingerprints(keys):
    async def scenario(verifier, dial):
        async with dial() as drafter:
            await drafter.say(Hello(bytes(32), "other", 1, 1, 0))
            error = await drafter.hear(Error)
            assert error.code == ErrorCode.VOCABULARY
            assert "0001020304050607" in error.message
            assert verifier.sessions == []

    run(keys, scenario)


def test_a_token_past_the_vocabulary_costs_its_node_and_not_its_drafter(keys):
    runner = FakeRunner(stepped=True)

    async def scenario(verifier, dial):
        async with dial() as drafter:
            await drafter.join()
            stream = verifier.submit(max_tokens=12)
            opened = await drafter.hear(Open)
            right = continuation(PROMPT, 8)
            tokens = (VOCAB_SIZE, right[0], VOCAB_SIZE + 63, *right[1:], 2**31 - 1)
            parents = (-1, -1, 1, 1, *range(3, len(tokens) - 1))
            await drafter.say(Draft(opened.request, len(PROMPT), check_of(PROMPT), tokens, parents))
            text = verifier.exchange.texts[opened.request]
            await until(lambda: text.outcomes)
            runner.free()
            assert await text_of(stream) == continuation(PROMPT, 12)
            assert stream.statistics.outcomes == {"new": 1}
            assert stream.statistics.nodes_dropped == 3
            assert stream.statistics.remote_tokens_accepted >= 7  # The first pass was under way.
            assert verifier.sessions[0].ready

    run(keys, scenario, runner=runner)


def test_a_new_hello_of_the_same_key_supersedes_the_old_session(keys):
    runner = FakeRunner(stepped=True)

    async def scenario(verifier, dial):
        async with dial() as old, dial() as new, dial("second") as other:
            await old.join()
            await other.join()
            stream = verifier.submit(max_tokens=5)
            await old.hear(Open)
            await new.join()
            assert (await old.hear(Error)).code == ErrorCode.SUPERSEDED
            opened = await new.hear(Open)
            assert opened.token_ids == PROMPT
            assert len(verifier.sessions) == 2
            runner.free()
            assert await text_of(stream) == continuation(PROMPT, 5)

    run(keys, scenario, runner=runner)


def test_a_late_joiner_is_asked_for_the_running_request(keys):
    runner = FakeRunner(stepped=True)

    async def scenario(verifier, dial):
        stream = verifier.submit(max_tokens=6)
        runner.permits.release()
        runner.permits.release()
        await until(lambda: runner.passes == 2)
        async with dial() as drafter:
            await drafter.join()
            opened = await drafter.hear(Open)
            assert opened.token_ids[: len(PROMPT) + 1] == (*PROMPT, continuation(PROMPT, 1)[0])
            runner.free()
            await text_of(stream)
            assert (await drafter.hear(Close)).request == opened.request

    run(keys, scenario, runner=runner)


def test_a_drafter_that_stops_reading_blocks_nothing_and_is_given_up(keys):
    config = ExchangeConfig(session=SessionConfig(heartbeat_ms=40))

    async def scenario(verifier, dial):
        async with dial() as drafter:
            drafter.socket.rcvhwm = 1
            await drafter.join()
            submitted = verifier.submit_many(4, 600)
            await texts_are_right(submitted)
            await until(lambda: not verifier.sessions)
            assert verifier.counters["sessions_dead"] == 1

    run(keys, scenario, config=config)


def test_the_engine_says_close_to_its_drafters_at_its_end(keys):
    runner = FakeRunner(stepped=True)

    async def scenario(verifier, dial):
        async with dial() as drafter:
            await drafter.join()
            streams = [verifier.submit(max_tokens=20) for _ in range(3)]
            opened = {(await drafter.hear(Open)).request for _ in streams}
            closing = asyncio.create_task(verifier.engine.close())
            await asyncio.sleep(0)
            runner.free()
            await closing
            assert {(await drafter.hear(Close)).request for _ in streams} == opened
            assert {stream.finish_reason for stream in streams} == {"cancelled"}
            verifier.check_nothing_is_left()

    run(keys, scenario, runner=runner)


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1", "nonsense", "in use"])
def test_an_address_that_cannot_be_bound_is_an_os_error(keys, bind):
    async def scenario(verifier, dial):
        address = verifier.drafters.address if bind == "in use" else bind
        other = Verifier(keys, FakeRunner(), bind=address)
        with pytest.raises(OSError, match="cannot bind"):
            await other.drafters.start()
        await other.drafters.close()
        with pytest.raises(OSError, match="expected a free address"):
            check_bind(address)

    run(keys, scenario)


def test_who_greets_twice_is_not_sent_the_text_twice_at_once(keys):
    """Or a drafter of little bandwidth could make the verifier send without end."""
    runner = FakeRunner(stepped=True)

    async def scenario(verifier, dial):
        async with dial() as drafter:
            await drafter.join()
            stream = verifier.submit(max_tokens=5)
            await drafter.hear(Open)
            sent = verifier.counters["bytes_sent"]
            for _ in range(20):
                await drafter.say(HELLO)
            await until(lambda: verifier.counters["sessions_superseded"] == 20)
            # A WELCOME and a PING each, and at most one OPEN.
            assert verifier.counters["bytes_sent"] - sent < 20 * 200
            runner.free()
            assert await text_of(stream) == continuation(PROMPT, 5)

    run(keys, scenario, runner=runner)
