"""The service over real sockets: whose sessions end, and what is served while they do."""

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from tests.serving.dialler import HELLO, PROMPT, SteppedTarget, run, until
from tests.serving.fake_models import continuation
from wanspec_kernels.drafts.session import SessionConfig
from wanspec_kernels.serving.endpoint import EndpointConfig
from wanspec_kernels.serving.service import ServiceConfig
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
    target = SteppedTarget(stepped=True)
    session = SessionConfig(heartbeat_ms=heartbeat_ms)
    config = ServiceConfig(endpoint=EndpointConfig(session=session))

    async def scenario(service, dial):
        async with dial("first") as removed, dial("second") as friend:
            await removed.join()
            await friend.join()
            generation = asyncio.create_task(service.generate(PROMPT, max_tokens=30))
            drafting = asyncio.create_task(friend.draft_forever())
            opened = await removed.hear(Open)
            (keys["enrolled"].folder / "first.key").unlink()
            began = time.monotonic()
            assert (await removed.hear(Close)).request == opened.request
            error = await removed.hear(Error)
            assert time.monotonic() - began < 1.0
            assert error.code == ErrorCode.NOT_ENROLLED
            assert "taken off the verifier's allow-list" in error.message
            assert [s.key for s in service.sessions] == [keys["second"].public.decode()]
            # Neither a draft nor a greeting is heard any more, and a sound one would be.
            unheard = service.counters["not_admitted"]
            sound = Draft(opened.request, len(PROMPT), check_of(PROMPT), (1,), (-1,))
            await removed.say(sound)
            await removed.say(HELLO)
            await until(lambda: service.counters["not_admitted"] == unheard + 2)
            assert len(service.sessions) == 1
            target.free()
            result = await generation
            await drafting
            assert result.token_ids == continuation(PROMPT, 30)
            assert service.counters["sessions_unlisted"] == 1

    run(keys, scenario, target=target, config=config)


def test_a_key_may_come_back(keys):
    async def scenario(service, dial):
        file = keys["enrolled"].folder / "first.key"
        content = file.read_text()
        async with dial("first") as removed:
            await removed.join()
            file.unlink()
            await removed.hear(Error)
        file.write_text(content)
        async with dial("first") as drafter:
            await drafter.join()
            assert len(service.sessions) == 1

    run(keys, scenario)


def test_more_connections_of_a_key_cost_its_oldest(keys):
    async def scenario(service, dial):
        async with dial("second") as friend:
            await friend.join()
            async with AsyncExitStack() as stack:
                for _ in range(40):
                    hostile = await stack.enter_async_context(dial("first"))
                    await hostile.say(b"no message")
                await until(lambda: service._endpoint._door.num_closed >= 40 - MAX_OF_A_KEY)
                result = await service.generate(PROMPT, max_tokens=5)
                assert result.token_ids == continuation(PROMPT, 5)
            assert [s.key for s in service.sessions] == [keys["second"].public.decode()]

    run(keys, scenario)
