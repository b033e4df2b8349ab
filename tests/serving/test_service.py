"""The service over real sockets, with drafters that are coroutines."""

import asyncio
import threading
from fractions import Fraction
from functools import partial

import numpy as np
import pytest

from tests.serving.dialler import (
    PROMPT,
    VOCABULARY,
    WAIT_S,
    SteppedTarget,
    run,
    until,
)
from tests.serving.fake_models import VOCAB_SIZE, FakeHome, FakeTarget, continuation
from wanspec_kernels.drafts.session import SessionConfig
from wanspec_kernels.serving.endpoint import EndpointConfig
from wanspec_kernels.serving.service import ServiceConfig, VerifierService
from wanspec_kernels.wire import Close, Draft, Error, ErrorCode, Hello, Open, check_of
from wanspec_kernels.wire.sampling import Sampling


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
            sampling=Sampling(
                Fraction(1, 2), top_k=np.int64(7), top_p=np.float32(0.5), seed=np.uint8(3)
            ),
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
            await until(lambda: service._estimates.sources.paces)
            target.free()
            await generation
            await drafting
            await drafter.say(Hello(bytes(32), "another", 4, 256, 0))
            await until(lambda: not any(session.ready for session in service.sessions))
        assert not service._estimates.sources.paces
        assert not service._estimates.sources.usefulness._records

    run(keys, scenario, target=target)


def test_another_vocabulary_is_refused_with_both_fingerprints(keys):
    async def scenario(service, dial):
        async with dial() as drafter:
            await drafter.say(Hello(bytes(32), "other", 1, 1, 0))
            error = await drafter.hear(Error)
            assert error.code == ErrorCode.VOCABULARY
            assert "0001020304050607" in error.message
            assert service.sessions == []

    run(keys, scenario)


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


def test_a_socket_needs_keys():
    with pytest.raises(ValueError, match="expected a secret key and an allow-list"):
        VerifierService(
            FakeTarget(), vocabulary=VOCABULARY, vocab_size=VOCAB_SIZE, bind="tcp://127.0.0.1:*"
        )
