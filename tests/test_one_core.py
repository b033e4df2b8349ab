"""Processes that compete for one core: a remote drafter costs few of the passes that home saves."""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from importlib.resources import files

import pytest
import torch

from wanspec_kernels.assembly import Pair
from wanspec_kernels.commands.waiting import wait_for_drafters
from wanspec_kernels.demo.processes import EmulatedLink, RemoteDrafter, make_keys
from wanspec_kernels.engine.request import Request
from wanspec_kernels.wire.keys import AllowList, load_secret

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be pinned"),
]
TOKENS = 200
# Home alone takes 34 passes. A good drafter that is near replaces home's drafts where it can; what
# the machine gives a starved one differs from run to run, and so do the passes: 34 to 59. Where the
# target waited for such a drafter or left it the field, they were 71 to 186.
PASSES = 66


@contextmanager
def one_busy_core(drafter):
    """This process, the drafter's and one that never rests share a core."""
    cores = os.sched_getaffinity(0)
    pids = [int(task) for pid in (os.getpid(), drafter) for task in os.listdir(f"/proc/{pid}/task")]
    for pid in pids:
        os.sched_setaffinity(pid, {min(cores)})
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()
        for pid in (os.getpid(), *map(int, os.listdir("/proc/self/task"))):
            os.sched_setaffinity(pid, cores)


async def decode(pair, folder, niceness):
    engine = pair.engine(
        bind="tcp://127.0.0.1:*",
        secret=load_secret(folder / "verifier.secret"),
        allowed=AllowList(folder / "allowed"),
    )
    async with engine, asyncio.timeout(120.0):
        drafter = RemoteDrafter.start(
            1, folder, engine.address, EmulatedLink(2.0, 0.0, None), niceness=niceness
        )
        try:
            exchange = engine.scheduler.exchange
            await wait_for_drafters(exchange, engine.address, 1, lambda _: None)
            with one_busy_core(drafter.process.pid):
                stream = engine.submit(Request(held_out_prompt(pair), TOKENS))
                async for _ in stream:
                    pass
                return stream.statistics
        finally:
            drafter.stop()


def held_out_prompt(pair):
    prompts = json.loads((files("wanspec_kernels.bundled") / "prompts.json").read_text())
    return tuple(pair.target.tokenizer(prompts[0]["text"])["input_ids"])


@pytest.mark.parametrize("niceness", [0, 10])
def test_a_starved_drafter_costs_few_passes(tmp_path, niceness):
    make_keys(tmp_path, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pair = Pair.load("bundled:target", "bundled:draft", "cpu", torch.float32)
    try:
        statistics = asyncio.run(decode(pair, tmp_path, niceness))
    finally:
        torch.set_num_threads(threads)
    assert statistics.tokens == TOKENS
    assert statistics.target_passes <= PASSES, statistics
