"""Processes that compete for one core: a remote drafter costs few of the passes that home saves."""

import asyncio
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from bench.faults import held_out_prompts
from bench.real_run import Bench, Paces, until
from wanspec_kernels.assembly import Pair
from wanspec_kernels.demo.processes import EmulatedLink, RemoteDrafter, make_keys
from wanspec_kernels.engine.request import Request

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
    (prompt,) = held_out_prompts(pair, 1)
    async with Bench(pair, Paces(0.0, 0.0, 0.0), folder).engine("tcp://127.0.0.1:*") as running:
        drafter = RemoteDrafter.start(
            1, folder, running.address, EmulatedLink(2.0, 0.0, None), niceness=niceness
        )
        try:
            await until(lambda: running.welcomed(1), [drafter])
            with one_busy_core(drafter.process.pid):
                return await asyncio.wait_for(running.decode(Request(prompt, TOKENS)), 120.0)
        finally:
            drafter.stop()


@pytest.mark.parametrize("niceness", [0, 10])
def test_a_starved_drafter_costs_few_passes(tmp_path, niceness):
    make_keys(tmp_path, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pair = Pair.load("bundled:target", "bundled:draft", "cpu", torch.float32)
    try:
        result = asyncio.run(decode(pair, tmp_path, niceness))
    finally:
        torch.set_num_threads(threads)
    assert len(result.token_ids) == TOKENS
    assert result.statistics.target_passes <= PASSES, result.statistics
