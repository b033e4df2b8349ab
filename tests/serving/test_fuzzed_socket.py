"""Mutations of a drafter's messages over a real socket, while another drafts for three requests."""

import os
from pathlib import Path
from random import Random

from bench.fuzz import READS_ALL, REOPENS_AT_ONCE, Fuzzer
from tests.serving.dialler import HELLO, run, texts_are_right, until
from tests.serving.fake_models import VOCAB_SIZE, FakeRunner, guess
from wanspec_kernels.drafts.exchange import ExchangeConfig
from wanspec_kernels.wire import Commit, Open, Ping, Pong

ROUNDS, FRAMES, REQUESTS = 10, 50, 3


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_500_mutations_change_nothing_for_anybody_else(keys):
    runner = FakeRunner(stepped=True)
    config = ExchangeConfig(session=REOPENS_AT_ONCE, admission=READS_ALL)

    async def scenario(verifier, dial):
        async with dial("first") as hostile, dial("second") as friend:
            await friend.join()
            submitted = verifier.submit_many(REQUESTS, 150)
            fuzzer = Fuzzer(hostile.socket, HELLO, Random(5), VOCAB_SIZE)
            texts, resident = {}, []
            for _ in range(ROUNDS):
                for _ in submitted:
                    message = await friend.hear(Open, Commit)
                    texts.setdefault(message.request, []).extend(message.token_ids)
                await fuzzer.send(FRAMES)
                await fuzzer.finish()
                for request, text in texts.items():
                    await friend.say(guess(Random(1), text, 1.0, 6, request=request))
                await friend.say(Ping(1, 0))
                await friend.hear(Pong)
                passes = runner.passes
                runner.permits.release()
                await until(lambda before=passes: runner.passes > before)
                resident.append(resident_bytes())
            runner.free()
            await texts_are_right(submitted)
        statistics = [stream.statistics for stream, _ in submitted]
        assert sum(s.remote_tokens_accepted for s in statistics) > REQUESTS * ROUNDS
        outcomes = sum((s.outcomes for s in statistics), start=type(statistics[0].outcomes)())
        counters = verifier.counters
        assert counters["internal_errors"] == 0
        # The frames reach all there is to reach.
        assert counters["malformed"] > ROUNDS * FRAMES / 4
        assert counters["sessions_quarantined"] > 0
        assert min(outcomes[kind] for kind in ("new", "early", "foreign", "invalid")) > 0, outcomes
        assert resident[-1] - resident[1] < 8 << 20
        verifier.check_nothing_is_left()

    run(keys, scenario, runner=runner, config=config)
