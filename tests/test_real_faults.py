"""Faults in real processes: a drafter, its link and the verifier broken one after another.

`python -m bench.faults` has every schedule by itself, with times.
"""

import asyncio

import pytest
import torch

from bench.fault_schedules import CONTINUE, STOP, restart_drafter, restart_verifier, tell, wait
from bench.faults import decode, held_out_prompt
from bench.real_run import Bench, Paces
from wanspec_kernels.assembly import Pair
from wanspec_kernels.demo.processes import EmulatedLink, make_keys

pytestmark = pytest.mark.alone
LINK = EmulatedLink(20.0, 1.0, 50.0)
TOKENS = 420
FAULTS = (
    *(STOP, wait(0.3), CONTINUE, wait(0.2)),
    *(tell("bandwidth 0.05"), wait(0.3), tell("tear"), wait(0.3), tell("bandwidth 0"), wait(0.3)),
    *(tell("stall"), wait(0.3), tell("cut"), tell("resume"), wait(0.3)),
    *(restart_verifier, wait(0.3)),
    restart_drafter,
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pair = Pair.load("bundled:target", "bundled:draft", "cpu", torch.float32)
    yield Bench(pair, Paces(60.0, 6.0, 8.0), folder)
    torch.set_num_threads(threads)


def test_the_text_is_the_targets_own_whatever_breaks(bench):
    prompt = held_out_prompt(bench.pair)
    unpaced = Bench(bench.pair, Paces(0.0, 0.0, 0.0), bench.folder)
    alone = asyncio.run(decode(unpaced, prompt, TOKENS, 0, link=None))
    found = asyncio.run(decode(bench, prompt, TOKENS, 0, FAULTS, link=LINK))
    assert found.token_ids == alone.token_ids
    assert found.num_generations == 2  # the verifier was restarted
    assert found.remote_tokens_before > 0
