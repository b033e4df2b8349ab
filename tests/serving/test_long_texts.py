"""Texts longer than OPEN holds: home drafts on, and remotes are not asked, which is said once."""

import asyncio

import pytest
import torch

from drafter.growth import GrowthShape
from drafter.home import HomeDrafter
from tests.drafter.test_growth import open_request, paths_of
from tests.drafter.test_session import VOCAB, FakeModel
from tests.serving.dialler import PROMPT, SteppedTarget, run, until
from tests.serving.fake_models import FakeHome, continuation
from wanspec_kernels.control.policies import AlwaysLocal
from wanspec_kernels.serving.service import ServiceConfig
from wanspec_kernels.wire import MAX_PROMPT_TOKENS, Close, Commit, Error, ErrorCode, Open

NOTE = f"OPEN holds {MAX_PROMPT_TOKENS} at most"


def text(length):
    return (PROMPT * (length // len(PROMPT) + 1))[:length]


@pytest.mark.alone  # home is waited for as long as two of the fake target's passes
@pytest.mark.parametrize("past", [-10, 0, 1, 300])
def test_home_drafts_on(keys, caplog, past):
    """Of a text that long from the start, and of one that becomes so while it is decoded."""
    home = FakeHome(skill=1.0)
    prompt = text(MAX_PROMPT_TOKENS + past)

    async def scenario(service, dial):
        result = await service.generate(prompt, max_tokens=40)
        assert result.token_ids == continuation(prompt, 40)
        assert result.statistics.home_failures == 0
        assert result.statistics.home_tokens_accepted > 0
        assert result.statistics.target_passes < 30

    run(keys, scenario, home=home, config=ServiceConfig(policy=AlwaysLocal(3)))
    (opened,) = home.opened
    assert opened.token_ids == prompt[:MAX_PROMPT_TOKENS]
    assert caplog.text.count(NOTE) == 1


def test_the_home_drafter_catches_up_with_a_text_opened_in_part():
    class LongModel(FakeModel):
        max_positions = 1 << 17

        def run(self, batch):
            if not any(len(plan.rows) for _, plan in batch):  # the text's beginning
                return torch.empty(0, VOCAB)
            return super().run(batch)

    whole = text(MAX_PROMPT_TOKENS + 50)
    shape = GrowthShape(prompt_chunk=1024)
    found = []
    for opened in (whole[:MAX_PROMPT_TOKENS], whole[-3:]):
        home = HomeDrafter(LongModel(), shape=shape)
        home.open(open_request(opened, request=5, max_nodes=32))
        drafts = home.draft(5, whole if len(opened) > 3 else opened, 3)
        found.append(set().union(*(paths_of(draft) for draft in drafts)))
    assert found[0] == found[1] != set()  # the model looks at the last token alone
    assert drafts


def test_a_home_drafter_that_always_fails_is_logged_once(keys, caplog):
    async def scenario(service, dial):
        result = await service.generate(PROMPT, max_tokens=20)
        assert result.token_ids == continuation(PROMPT, 20)
        assert result.statistics.home_failures > 1

    run(keys, scenario, home=FakeHome(failures=10**6))
    assert caplog.text.count("Traceback") == 1


def test_remotes_are_not_asked_for_too_long_a_text(keys, caplog):
    prompt = text(MAX_PROMPT_TOKENS + 1)

    async def scenario(service, dial):
        async with dial() as drafter:
            await drafter.join()
            result = await service.generate(prompt, max_tokens=5)
            assert result.token_ids == continuation(prompt, 5)
            assert result.source_names == {}
            assert service.sessions[0].counters["too_long"] > 0
            result = await service.generate(PROMPT, max_tokens=5)
            assert (await drafter.hear(Open)).token_ids == PROMPT  # the first that it hears
        assert service.counters["internal_errors"] == 0

    run(keys, scenario)
    assert caplog.text.count(NOTE) == 1


def test_a_remote_that_follows_goes_on_past_the_limit_until_it_loses_track(keys, caplog):
    prompt = text(MAX_PROMPT_TOKENS - 1)
    target = SteppedTarget(stepped=True)

    async def scenario(service, dial):
        async with dial() as drafter, dial("second") as late:
            await drafter.join()
            generation = asyncio.create_task(service.generate(prompt, max_tokens=9))
            opened = await drafter.hear(Open)
            for length in range(MAX_PROMPT_TOKENS, MAX_PROMPT_TOKENS + 4):
                target.permits.release()
                assert (await drafter.hear(Commit)).length == length
            await late.join()
            await drafter.say(Error(ErrorCode.RESYNC, "lost", opened.request))
            await until(lambda: all(s.counters["too_long"] for s in service.sessions))
            target.free()
            assert (await generation).token_ids == continuation(prompt, 9)
            assert (await drafter.hear(Open, Commit, Close)) == Close(opened.request, "length")
        assert service.counters["internal_errors"] == 0

    run(keys, scenario, target=target)
    assert caplog.text.count(NOTE) == 1
