"""Mutations of a drafter's messages over a real socket, while another drafts for a generation."""

import asyncio
import os
from pathlib import Path
from random import Random

from bench.fuzz import READS_ALL, REOPENS_AT_ONCE, Fuzzer
from tests.serving.dialler import HELLO, PROMPT, SteppedTarget, run
from tests.serving.fake_models import VOCAB_SIZE, continuation, guess
from wanspec_kernels.serving.endpoint import EndpointConfig
from wanspec_kernels.serving.service import ServiceConfig
from wanspec_kernels.wire import Commit, Open, Ping, Pong

ROUNDS, FRAMES = 10, 50


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_500_mutations_change_nothing_for_anybody_else(keys):
    target = SteppedTarget(stepped=True)
    config = ServiceConfig(endpoint=EndpointConfig(REOPENS_AT_ONCE, READS_ALL))

    async def scenario(service, dial):
        async with dial("first") as hostile, dial("second") as friend:
            await friend.join()
            generation = asyncio.create_task(service.generate(PROMPT, max_tokens=200))
            fuzzer = Fuzzer(hostile.socket, HELLO, Random(5), VOCAB_SIZE)
            text, resident = [], []
            for _ in range(ROUNDS):
                message = await friend.hear(Open, Commit)
                text += message.token_ids
                await fuzzer.send(FRAMES)
                await fuzzer.finish()
                await friend.say(guess(Random(1), text, 1.0, 6, request=message.request))
                await friend.say(Ping(1, 0))
                await friend.hear(Pong)
                target.permits.release()
                resident.append(resident_bytes())
            target.free()
            result = await generation
        assert result.token_ids == continuation(PROMPT, 200)
        assert result.statistics.remote_tokens_accepted > ROUNDS
        outcomes, counters = result.statistics.outcomes, service.counters
        assert counters["internal_errors"] == 0
        # The frames reach all there is to reach.
        assert counters["malformed"] > ROUNDS * FRAMES / 4
        assert counters["sessions_quarantined"] > 0
        assert min(outcomes[kind] for kind in ("new", "early", "foreign", "invalid")) > 0, outcomes
        assert resident[-1] - resident[1] < 8 << 20

    run(keys, scenario, target=target, config=config)
