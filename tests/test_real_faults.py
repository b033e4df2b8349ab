"""Faults in real processes: a drafter, its link and the verifier broken one after another.

`python -m bench.faults` has every schedule by itself, with times, and holds each request to
its bound: times of a machine that others share would say nothing here.
"""

import asyncio

import pytest
import torch

from bench.fault_schedules import CONTINUE, STOP, restart_drafter, restart_verifier, tell, wait
from bench.faults import Record, decode, held_out_prompts, is_bounded
from bench.real_run import Bench, Paces
from wanspec_kernels.assembly import Pair
from wanspec_kernels.demo.processes import EmulatedLink, make_keys
from wanspec_kernels.drafts.outcome import Kind, Outcome
from wanspec_kernels.events import Asked, Offered
from wanspec_kernels.wire import Draft

REQUESTS = 4  # at once
LINK = EmulatedLink(20.0, 1.0, 50.0)
PACES = Paces(60.0, 6.0, 8.0)
TOKENS = 300
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
    yield Bench(pair, PACES, folder)
    torch.set_num_threads(threads)


@pytest.mark.alone
def test_texts_are_the_targets_own_whatever_breaks(bench):
    prompts = held_out_prompts(bench.pair, REQUESTS)
    unpaced = Bench(bench.pair, Paces(0.0, 0.0, 0.0), bench.folder)
    plain = asyncio.run(decode(unpaced, prompts, TOKENS, link=None, home=False))
    found = asyncio.run(decode(bench, prompts, TOKENS, FAULTS, link=LINK))
    assert found.token_ids == plain.token_ids
    assert found.num_engines == 2  # the verifier was restarted
    assert found.remote_tokens_before > 0


def offered(request, base_length, source=1):
    return Offered(source, Draft(request, base_length, 0, (5,), (-1,)), Outcome(Kind.NEW))


def test_a_recovery_ends_with_a_draft_that_knows_the_text_as_it_was():
    """By a clock that the test sets: the longest of the requests', from OPEN on if one came."""
    clock = [0.0]
    record = Record([(1, 2, 3), (1, 2)], lambda: None, clock=lambda: clock[0])
    hear = record.listen({11: 0, 12: 1})
    hear(Asked(11, 1))
    hear(Asked(12, 1))
    clock[0] = 10.0
    record.mends()
    assert record.recovery_ms is None
    hear(offered(11, 2))  # of a text before it was whole
    assert record.recovery_ms is None
    clock[0] = 10.1
    hear(offered(11, 3))
    assert record.recovery_ms == pytest.approx(100.0)
    clock[0] = 10.4
    hear(Asked(12, 2))  # the drafter has come anew
    clock[0] = 10.6
    hear(offered(12, 2, source=2))
    assert record.recovery_ms == pytest.approx(200.0)
    clock[0] = 11.0
    hear(offered(11, 4))
    assert record.recovery_ms == pytest.approx(200.0)


def test_a_bound_is_kept_by_each_request():
    assert is_bounded([1100.0, 900.0], [1000.0, 1000.0], 100.0, 1)
    assert not is_bounded([1300.0, 900.0], [1000.0, 1000.0], 100.0, 1)
    assert is_bounded([1300.0, 900.0], [1000.0, 1000.0], 100.0, 2)  # It was restarted.
