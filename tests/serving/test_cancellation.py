"""What is cancelled ends as cancelled, at any turn of the loop, and lets go of all that it held."""

import asyncio
import threading

import pytest
import zmq.asyncio

from tests.serving.dialler import PROMPT, Verifier, run, text_of, texts_are_right, until
from tests.serving.fake_models import WAIT_S, FakeHome, FakeRunner, continuation
from wanspec_kernels.wire import Close, Open
from wanspec_kernels.wire.keys import Authenticator

TURNS = range(6)


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
@pytest.mark.parametrize("awaits", ["pass", "home"])
def test_requests_are_cancelled_so_many_turns_after_a_wake(keys, number, how, awaits):
    """Three of six, or all at the engine's end; the others have the text that they should have."""

    class Hangs(FakeHome):
        def draft_all(self, jobs):
            assert hangs.wait(WAIT_S)
            return super().draft_all(jobs)

    hangs = threading.Event()
    home = Hangs() if awaits == "home" else None
    runner = FakeRunner(stepped=True)

    async def scenario(verifier, dial):
        async with dial() as drafter, dial("second") as another:
            await drafter.join()
            await another.join()
            submitted = verifier.submit_many(6, 50)
            opened = await drafter.hear(Open)
            await until(lambda: runner.plans or verifier.scheduler.home.is_busy)
            await turns(20)  # They wait now.
            verifier.engine._wake.set()
            await turns(number)
            ended, going_on = submitted[::2], submitted[1::2]
            closing = None
            if how == "close":
                closing = asyncio.create_task(verifier.engine.close())
                ended, going_on = submitted, []
            else:
                for stream, _ in ended:
                    stream.cancel()
            await turns(3)
            hangs.set()
            runner.free()
            for stream, expected in ended:
                text = await text_of(stream)
                assert text == expected[: len(text)]
                assert stream.finish_reason == "cancelled"
                assert stream.statistics.target_passes < 50
            await texts_are_right(going_on)
            while (await drafter.hear(Close)).request != opened.request:
                pass
            if closing is not None:
                await closing
            verifier.check_nothing_is_left()
            if home is not None and how == "cancel":
                await until(lambda: not home.known)

    run(keys, scenario, runner=runner, home=home)


@pytest.mark.parametrize("how", ["cancel", "close"])
@pytest.mark.parametrize("with_home", [False, True], ids=["alone", "home"])
def test_a_request_is_cancelled_at_any_turn(with_home, how):
    """Wherever it stands, beside one that goes on; the last turns are those of its end."""

    async def at(number):
        verifier = Verifier(None, FakeRunner(), FakeHome() if with_home else None)
        async with verifier.engine:
            other = verifier.submit((*PROMPT, 1), 4)
            stream = verifier.submit(PROMPT, 3)
            await turns(number)
            was_over = stream.finish_reason is not None
            if how == "cancel":
                stream.cancel()
            else:
                await verifier.engine.close()
            text = await text_of(stream)
            assert text == continuation(PROMPT, 3)[: len(text)]
            assert stream.finish_reason == ("length" if was_over else "cancelled") or len(text) == 3
            if how == "cancel":
                assert await text_of(other) == continuation((*PROMPT, 1), 4)
            verifier.check_nothing_is_left()
        return not was_over

    async def scenario():
        number = 0
        while await at(number):
            number += 1
        assert number > 5

    asyncio.run(scenario())


@pytest.mark.parametrize("number", TURNS)
@pytest.mark.parametrize("at_work", [False, True], ids=["idle", "at work"])
def test_a_close_is_cancelled_and_closes_when_called_again(keys, number, at_work):
    runner = FakeRunner(stepped=True)

    async def scenario(verifier, dial):
        stream = None
        if at_work:
            stream = verifier.submit()
            await until(lambda: runner.plans)
        closing = asyncio.create_task(verifier.engine.close())
        await turns(number)
        expected = closing.cancel()
        runner.free()
        assert await cancelled(closing) is expected
        await verifier.engine.close()
        verifier.check_nothing_is_left()
        assert stream is None or stream.finish_reason == "cancelled"

    run(keys, scenario, runner=runner)


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
