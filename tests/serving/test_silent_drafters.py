"""Enrolled drafters that bring nothing, over real sockets: the texts go on without them."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drafter.session import Session as DrafterSession
from tests.drafter.test_session import FakeModel
from tests.serving.dialler import PROMPT, Verifier, at_work, run, texts_are_right, until
from tests.serving.fake_models import FakeHome, FakeRunner, continuation
from wanspec_kernels.wire import Close, Commit, Error, Open

HOMES = pytest.mark.parametrize("at_home", [False, True], ids=["alone", "home"])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    at_home=st.booleans(), turns=st.lists(st.integers(0, 9), max_size=20), count=st.integers(1, 4)
)
def test_wakes_without_news_change_nothing(at_home, turns, count):
    """Without a socket."""

    async def wake(engine):
        for number in turns:
            for _ in range(number):
                await asyncio.sleep(0)
            engine._wake.set()

    async def main():
        verifier = Verifier(None, FakeRunner(), FakeHome() if at_home else None)
        async with verifier.engine, at_work(wake(verifier.engine)):
            await texts_are_right(verifier.submit_many(count, 12))
            verifier.check_nothing_is_left()

    asyncio.run(main())


@HOMES
def test_a_drafter_that_never_drafts_holds_nothing_up(keys, at_home):
    """It greets, answers every ping and goes in the midst of the second four requests."""
    runner = FakeRunner()

    async def scenario(verifier, dial):
        async with dial() as drafter:
            await drafter.join()
            async with at_work(drafter.hear(Error)):  # and answers pings
                await until(lambda: verifier.sessions[0].round_trip_ms is not None)
                submitted = verifier.submit_many(4, 20)
                names = [verifier.exchange.texts[s.number].source_names for s, _ in submitted]
                await texts_are_right(submitted)
                assert all(names)  # It was asked.
                passes, runner.stepped = runner.passes, True
                submitted = verifier.submit_many(4, 20)
                runner.permits.release()
                await until(lambda: runner.passes > passes)
        await until(lambda: not verifier.sessions)
        runner.free()
        await texts_are_right(submitted)
        await texts_are_right(verifier.submit_many(4, 20))
        verifier.check_nothing_is_left()

    run(keys, scenario, runner=runner, home=FakeHome() if at_home else None)


class SmallModel(FakeModel):
    max_positions = 16


@pytest.mark.parametrize("length", [5, 15, 16, 17, 30])
@HOMES
def test_a_drafter_whose_model_has_16_positions_holds_nothing_up(keys, length, at_home):
    prompt = (PROMPT * 6)[:length]

    async def draft(dialler, session):
        """As the daemon does, without its flow control."""
        while True:
            message = await dialler.hear(Open, Commit, Close)
            for answer in session.on_message(message):
                await dialler.say(answer)
            while session.busy:
                for answer in [*session.step(), *session.drafts()]:
                    await dialler.say(answer)

    async def scenario(verifier, dial):
        async with dial() as dialler:
            await dialler.join()
            session = DrafterSession(SmallModel())
            async with at_work(draft(dialler, session)) as drafting:
                await until(lambda: verifier.sessions[0].round_trip_ms or drafting.done())
                for _ in range(2):
                    text, _ = await verifier.text(prompt, 40)
                    assert text == continuation(prompt, 40)
                await until(lambda: session.counters.num_refused + session.counters.num_opened > 0)

    run(keys, scenario, home=FakeHome() if at_home else None)
