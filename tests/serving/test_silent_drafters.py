"""Enrolled drafters that bring nothing, over real sockets: the text goes on without them."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drafter.session import Session as DrafterSession
from tests.drafter.test_session import FakeModel
from tests.serving.dialler import PROMPT, VOCABULARY, SteppedTarget, run, until
from tests.serving.fake_models import VOCAB_SIZE, FakeHome, FakeTarget, continuation
from tests.serving.test_waits import ANSWERS, Recited
from wanspec_kernels.control import waits
from wanspec_kernels.control.policies import EntropyGate, ExpectedGain, NeverLocal
from wanspec_kernels.control.policy import Verify, Wait
from wanspec_kernels.serving.service import ServiceConfig, VerifierService
from wanspec_kernels.wire import Close, Commit, Error, Open

POLICIES = (ExpectedGain(), NeverLocal(), EntropyGate())


class WaitsTwice:
    """After each commit it waits for so long, and then as long again if that was cut short."""

    wait_ms = 20.0

    def decide(self, view):
        if view.verifying or view.waited_ms >= self.wait_ms / 2:
            return Verify()
        return Wait(view.now_ms + self.wait_ms)


async def generate(policy, prompt=PROMPT, *, home=None, wake=None, max_tokens=3):
    """By a service of its own, without a socket."""
    service = VerifierService(
        FakeTarget(),
        vocabulary=VOCABULARY,
        vocab_size=VOCAB_SIZE,
        home=home,
        config=ServiceConfig(policy=policy),
    )
    async with service, asyncio.timeout(20.0):
        waking = asyncio.create_task(wake(service)) if wake else None
        result = await service.generate(prompt, max_tokens=max_tokens)
        if waking is not None:
            waking.cancel()
            await asyncio.wait([waking])
    return result


def test_each_token_comes_after_its_bounded_wait():
    result = asyncio.run(generate(WaitsTwice()))
    assert result.token_ids == continuation(PROMPT, 3)
    assert 3 * WaitsTwice.wait_ms <= result.statistics.waited_ms < result.elapsed_ms


def test_wakes_without_news_neither_end_a_wait_nor_prolong_it():
    async def wake(service):
        while True:
            service._wake.set()
            await asyncio.sleep(0)

    result = asyncio.run(generate(WaitsTwice(), wake=wake))
    assert result.token_ids == continuation(PROMPT, 3)
    assert 3 * WaitsTwice.wait_ms <= result.statistics.waited_ms < result.elapsed_ms


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    answers=st.lists(ANSWERS, min_size=1, max_size=4),
    at_home=st.booleans(),
    turns=st.lists(st.integers(0, 9), max_size=20),
)
def test_the_service_ends_every_wait(monkeypatch, answers, at_home, turns):
    monkeypatch.setattr(waits, "MAX_WAIT_MS", 2.0)

    async def wake(service):
        for number in turns:
            for _ in range(number):
                await asyncio.sleep(0)
            service._wake.set()

    home = FakeHome() if at_home else None
    result = asyncio.run(generate(Recited(answers), home=home, wake=wake, max_tokens=12))
    assert result.token_ids == continuation(PROMPT, 12)


@pytest.mark.parametrize("home", [None, FakeHome()], ids=["alone", "home"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_a_drafter_that_never_drafts_holds_nothing_up(keys, policy, home):
    """It greets, answers every ping and goes in the midst of the second request."""
    target = SteppedTarget()

    async def scenario(service, dial):
        async with dial() as drafter:
            await drafter.join()
            listening = asyncio.create_task(drafter.hear(Error))  # and answers pings
            await until(lambda: service.sessions[0].round_trip_ms is not None)
            result = await service.generate(PROMPT, max_tokens=20)
            assert result.token_ids == continuation(PROMPT, 20)
            assert result.source_names  # it was asked
            passes, target.stepped = target.passes, True
            generation = asyncio.create_task(service.generate(PROMPT, max_tokens=20))
            target.permits.release()
            await until(lambda: target.passes > passes)
            listening.cancel()
            await asyncio.wait([listening])
        await until(lambda: not service.sessions)
        target.free()
        assert (await generation).token_ids == continuation(PROMPT, 20)
        result = await service.generate(PROMPT, max_tokens=20)
        assert result.token_ids == continuation(PROMPT, 20)

    run(keys, scenario, target=target, home=home, config=ServiceConfig(policy=policy))


class SmallModel(FakeModel):
    max_positions = 16


@pytest.mark.parametrize("length", [5, 15, 16, 17, 30])
@pytest.mark.parametrize("home", [None, FakeHome()], ids=["alone", "home"])
def test_a_drafter_whose_model_has_16_positions_holds_nothing_up(keys, length, home):
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

    async def scenario(service, dial):
        async with dial() as dialler:
            await dialler.join()
            session = DrafterSession(SmallModel())
            drafting = asyncio.create_task(draft(dialler, session))
            await until(lambda: service.sessions[0].round_trip_ms or drafting.done())
            for _ in range(2):
                result = await service.generate(prompt, max_tokens=40)
                assert result.token_ids == continuation(prompt, 40)
            await until(lambda: session.counters.num_refused + session.counters.num_opened > 0)
            drafting.cancel()
            await asyncio.wait([drafting])
            assert drafting.cancelled()

    run(keys, scenario, home=home)
