"""Texts longer than OPEN holds: home drafts on, and remotes are not asked, which is said once."""

import pytest
import torch

from drafter.growth import GrowthShape
from drafter.home import HomeDrafter
from tests.drafter.test_growth import open_request, paths_of
from tests.drafter.test_session import VOCAB, FakeModel
from tests.serving.dialler import PROMPT, at_work, run, text_of, texts_are_right, until
from tests.serving.fake_models import PAGE_SIZE, FakeHome, FakeRunner, continuation
from wanspec_kernels.engine.scheduler import SchedulerLimits
from wanspec_kernels.wire import MAX_PROMPT_TOKENS, Close, Commit, Error, ErrorCode, Open

NOTE = f"OPEN holds {MAX_PROMPT_TOKENS} at most"
# A prompt is read in one pass.
BATCH = SchedulerLimits(
    max_rows=2 * MAX_PROMPT_TOKENS,
    chunk_rows=2 * MAX_PROMPT_TOKENS,
)


def text(length):
    return (PROMPT * (length // len(PROMPT) + 1))[:length]


def long_runner(stepped=False):
    return FakeRunner(stepped, num_pages=2 * MAX_PROMPT_TOKENS // PAGE_SIZE)


@pytest.mark.parametrize("past", [-10, 0, 1, 300])
def test_home_drafts_on(keys, caplog, past):
    """Of a text that long from the start, and of one that becomes so while it is decoded."""
    home = FakeHome(skill=1.0)
    prompt = text(MAX_PROMPT_TOKENS + past)

    async def scenario(verifier, dial):
        found, statistics = await verifier.text(prompt, 40)
        assert found == continuation(prompt, 40)
        assert statistics.home_failures == 0
        assert statistics.home_tokens_accepted > 0
        assert statistics.target_passes < 30

    run(keys, scenario, runner=long_runner(), home=home, batch=BATCH)
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
    assert found[0] == found[1] != set()  # The model looks at the last token alone.
    assert drafts


def test_remotes_are_not_asked_for_too_long_a_text_which_takes_no_seat(keys, caplog):
    """The drafter has four seats, and four requests beside the long one have them all."""
    prompt = text(MAX_PROMPT_TOKENS + 1)
    runner = long_runner(stepped=True)

    async def scenario(verifier, dial):
        async with dial() as drafter:
            await drafter.join()
            stream = verifier.submit(prompt, 5)
            submitted = verifier.submit_many(4, 5)
            opened = {(await drafter.hear(Open)).token_ids for _ in submitted}
            assert opened == {(*PROMPT, number) for number in range(4)}
            assert verifier.exchange.texts[stream.number].source_names == {}
            assert verifier.exchange.drafters_of(stream.number) == frozenset()
            runner.free()
            assert await text_of(stream) == continuation(prompt, 5)
            await texts_are_right(submitted)
        assert verifier.counters["internal_errors"] == 0
        verifier.check_nothing_is_left()

    run(keys, scenario, runner=runner, batch=BATCH)
    assert caplog.text.count(NOTE) == 1


def test_a_remote_that_follows_goes_on_past_the_limit_until_it_loses_track(keys, caplog):
    prompt = text(MAX_PROMPT_TOKENS - 1)
    runner = long_runner(stepped=True)

    async def scenario(verifier, dial):
        async with dial() as drafter, dial("second") as late:
            await drafter.join()
            stream = verifier.submit(prompt, 9)
            opened = await drafter.hear(Open)
            for length in range(MAX_PROMPT_TOKENS, MAX_PROMPT_TOKENS + 4):
                runner.permits.release()
                assert (await drafter.hear(Commit)).length == length
            await late.join()
            async with at_work(late.hear(Open)) as asked:
                await drafter.say(Error(ErrorCode.RESYNC, "lost", opened.request))
                await until(lambda: not verifier.exchange.drafters_of(stream.number))
                runner.free()
                assert await text_of(stream) == continuation(prompt, 9)
                message = await drafter.hear(Open, Commit, Close)
                assert isinstance(message, Close)
                assert message.request == opened.request
                assert not asked.done()
        assert verifier.counters["internal_errors"] == 0

    run(keys, scenario, runner=runner, batch=BATCH)
    assert caplog.text.count(NOTE) == 1
