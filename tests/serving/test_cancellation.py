"""What is cancelled ends with CancelledError, at any turn of the loop, and lets go of all."""

import asyncio
import threading

import pytest
import zmq.asyncio

from tests.serving.dialler import (
    PROMPT,
    VOCABULARY,
    WAIT_S,
    SteppedTarget,
    run,
    until,
)
from tests.serving.fake_models import VOCAB_SIZE, FakeHome, FakeTarget
from wanspec_kernels.control.policy import Verify, Wait
from wanspec_kernels.serving.service import ServiceConfig, VerifierService
from wanspec_kernels.wire import Close, Open
from wanspec_kernels.wire.keys import Authenticator

TURNS = range(6)


class Patient:
    """Waits for drafts as long as it may."""

    def decide(self, view):
        return Verify() if view.verifying else Wait(view.now_ms + 1e9)


async def turns(number):
    for _ in range(number):
        await asyncio.sleep(0)


async def cancelled(task):
    """It ended so, and with nothing else; neither the loop nor the test is cancelled for it."""
    await asyncio.wait([task], timeout=WAIT_S)
    assert task.done()
    return task.cancelled()


@pytest.mark.parametrize("number", TURNS)
@pytest.mark.parametrize("how", ["cancel", "close"])
@pytest.mark.parametrize("awaits", ["pass", "home", "drafts"])
def test_a_request_is_cancelled_so_many_turns_after_a_wake(keys, number, how, awaits):
    class Hangs(FakeHome):
        def draft(self, *args):
            assert hangs.wait(WAIT_S)
            return super().draft(*args)

    hangs = threading.Event()
    home = Hangs() if awaits == "home" else None
    target = SteppedTarget(stepped=awaits != "drafts")
    config = ServiceConfig(policy=Patient()) if awaits == "drafts" else None

    async def scenario(service, dial):
        async with dial() as drafter:
            await drafter.join()
            generation = asyncio.create_task(service.generate(PROMPT, max_tokens=50))
            opened = await drafter.hear(Open)
            await until(lambda: target.texts)
            await turns(20)  # it waits now
            service._wake.set()
            await turns(number)
            closing = asyncio.create_task(service.close()) if how == "close" else None
            if how == "cancel":
                generation.cancel()
            await turns(3)
            hangs.set()
            target.free()
            assert await cancelled(generation)
            assert target.texts == {}
            assert target.passes < 50
            assert (await drafter.hear(Close)).request == opened.request
            if closing is not None:
                await closing

    run(keys, scenario, target=target, home=home, config=config)


@pytest.mark.parametrize("how", ["cancel", "close"])
@pytest.mark.parametrize("home", [None, FakeHome()], ids=["alone", "home"])
def test_a_request_is_cancelled_at_any_turn(home, how):
    """Wherever it stands; the last turns are those in which it lets go of the target."""

    async def at(number):
        target = FakeTarget()
        service = VerifierService(target, vocabulary=VOCABULARY, vocab_size=VOCAB_SIZE, home=home)
        generation = asyncio.create_task(service.generate(PROMPT, max_tokens=3))
        await turns(number)
        if how == "cancel":
            expected = generation.cancel()
        else:
            expected = bool(service._callers)
            await service.close()
        assert await cancelled(generation) or not expected
        assert target.texts == {}
        await service.close()
        return expected or number == 0

    async def scenario():
        number = 0
        while await at(number):
            number += 1
        assert number > 10

    asyncio.run(scenario())


@pytest.mark.parametrize("number", TURNS)
def test_a_close_is_cancelled_and_closes_when_called_again(keys, number):
    async def scenario(service, dial):
        closing = asyncio.create_task(service.close())
        await turns(number)
        expected = closing.cancel()
        assert await cancelled(closing) is expected
        await service.close()

    run(keys, scenario)


@pytest.mark.parametrize("number", TURNS)
def test_an_authenticators_close_is_cancelled(keys, number):
    async def scenario():
        context = zmq.asyncio.Context()
        authenticator = Authenticator(context, keys["enrolled"])
        authenticator.start()
        closing = asyncio.create_task(authenticator.close())
        await turns(number)
        expected = closing.cancel()
        assert await cancelled(closing) is expected
        await authenticator.close()
        context.term()

    asyncio.run(scenario())


def test_a_cancellation_while_the_target_lets_go_comes_out_after_it():
    class Holds(FakeTarget):
        def finish(self, request):
            held.set()
            assert release.wait(WAIT_S)
            super().finish(request)

    held, release = threading.Event(), threading.Event()
    target = Holds()

    async def scenario():
        service = VerifierService(target, vocabulary=VOCABULARY, vocab_size=VOCAB_SIZE)
        generation = asyncio.create_task(service.generate(PROMPT, max_tokens=3))
        await until(held.is_set)
        for _ in range(3):
            generation.cancel()
            await turns(1)
        assert not generation.done()
        release.set()
        assert await cancelled(generation)
        assert target.texts == {}
        await service.close()

    asyncio.run(scenario())
