"""The drafters' socket: whose sessions end, and what is served while they do."""

import time
from contextlib import AsyncExitStack

import pytest

from tests.serving.dialler import HELLO, PROMPT, at_work, run, texts_are_right, until
from tests.serving.fake_models import FakeRunner
from wanspec_kernels.drafts.exchange import ExchangeConfig
from wanspec_kernels.drafts.session import SessionConfig
from wanspec_kernels.wire import Close, Draft, Error, ErrorCode, Open, check_of
from wanspec_kernels.wire.keys import AllowList, generate, load_secret
from wanspec_kernels.wire.keys.connections import MAX_OF_A_KEY


@pytest.fixture
def keys(tmp_path):
    """Keys of a test's own, which takes some off the list."""
    enrolled = tmp_path / "enrolled"
    enrolled.mkdir()
    secrets = {name: load_secret(generate(enrolled, name)) for name in ("first", "second")}
    secrets["verifier"] = load_secret(generate(tmp_path, "verifier"))
    secrets["enrolled"] = AllowList(enrolled)
    return secrets


@pytest.mark.parametrize("heartbeat_ms", [1000, 60_000])
def test_a_key_taken_off_the_list_ends_its_session_alone(keys, heartbeat_ms):
    runner = FakeRunner(stepped=True)
    config = ExchangeConfig(session=SessionConfig(heartbeat_ms=heartbeat_ms))

    async def scenario(verifier, dial):
        async with dial("first") as removed, dial("second") as friend:
            await removed.join()
            await friend.join()
            submitted = verifier.submit_many(4)
            async with at_work(friend.draft_forever()):
                opened = {(await removed.hear(Open)).request for _ in submitted}
                (keys["enrolled"].folder / "first.key").unlink()
                began = time.monotonic()
                assert {(await removed.hear(Close)).request for _ in submitted} == opened
                error = await removed.hear(Error)
                assert time.monotonic() - began < 1.0
                assert error.code == ErrorCode.NOT_ENROLLED
                assert "taken off the verifier's allow-list" in error.message
                assert [s.key for s in verifier.sessions] == [keys["second"].public.decode()]
                # Neither a draft nor a greeting is heard any more, and a sound one would be.
                unheard = verifier.counters["not_admitted"]
                text = (*PROMPT, 0)
                await removed.say(Draft(min(opened), len(text), check_of(text), (1,), (-1,)))
                await removed.say(HELLO)
                await until(lambda: verifier.counters["not_admitted"] >= unheard + 2)
                assert len(verifier.sessions) == 1
                runner.free()
                await texts_are_right(submitted)
        assert verifier.counters["sessions_unlisted"] == 1

    run(keys, scenario, runner=runner, config=config)


def test_a_key_may_come_back(keys):
    async def scenario(verifier, dial):
        file = keys["enrolled"].folder / "first.key"
        content = file.read_text()
        async with dial("first") as removed:
            await removed.join()
            file.unlink()
            await removed.hear(Error)
        file.write_text(content)
        async with dial("first") as drafter:
            await drafter.join()
            assert len(verifier.sessions) == 1

    run(keys, scenario)


def test_more_connections_of_a_key_cost_its_oldest(keys):
    async def scenario(verifier, dial):
        async with dial("second") as friend:
            await friend.join()
            async with AsyncExitStack() as stack:
                for _ in range(40):
                    hostile = await stack.enter_async_context(dial("first"))
                    await hostile.say(b"no message")
                await until(lambda: verifier.drafters._door.num_closed >= 40 - MAX_OF_A_KEY)
                await texts_are_right(verifier.submit_many(4, 5))
            assert [s.key for s in verifier.sessions] == [keys["second"].public.decode()]

    run(keys, scenario)
