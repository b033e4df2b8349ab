"""Merging: 1,000 live requests, each with 25 additions a second and the commits in between.

What is replayed is what one drafter sends and one target commits in a simulated second; a round is
that second for every request, so that a mean below 1 s is less than one core.
"""

import time

import pytest

from bench.replay import new_pool, record
from drafter.growth import GrowthShape
from wanspec_kernels.drafts.pool import Kind, Pool
from wanspec_kernels.simulation.link import LinkProfile
from wanspec_kernels.simulation.scenario import DrafterProfile, Machine, Scenario
from wanspec_kernels.simulation.traces import load
from wanspec_kernels.wire import Draft, decode, encode

# Of a core: what others do on the machine is left out.
pytestmark = pytest.mark.benchmark(timer=time.process_time)

REQUESTS = 1000
ADDITIONS = 25  # a second
Steps = list[Draft | tuple[int, ...]]
SHAPE = GrowthShape(width=4)  # rows of a pass over 1,000 requests: 4,000


@pytest.fixture(scope="module")
def second() -> Steps:
    """Offers and commits of one request, `ADDITIONS` of the former."""
    drafter = DrafterProfile(LinkProfile(30.0), Machine(1000.0 / ADDITIONS), SHAPE, 256)
    # A target that serves 1,000 requests at once takes its time, and drafts are mostly in time.
    target = Machine(200.0)
    found = record(Scenario(load("bundled"), (drafter,), home=None, target=target, tokens=200))
    of_use = sum(outcome.kind in (Kind.NEW, Kind.LATE) for outcome in found.outcomes)
    assert of_use > 0.8 * len(found.outcomes)
    offers, kept = 0, []
    for step in found.steps:
        offers += isinstance(step, Draft)
        kept.append(step)
        if offers == ADDITIONS:
            return kept
    raise AssertionError(f"expected {ADDITIONS} additions, got {offers}")


def new_pools() -> list[Pool]:
    return [new_pool(4096) for _ in range(REQUESTS)]


def replay(pools: list[Pool], second: Steps) -> None:
    for step in second:
        for pool in pools:
            if isinstance(step, Draft):
                pool.offer(1, step)
            else:
                pool.commit(step)


def select(pools: list[Pool]) -> None:
    for pool in pools:
        pool.select(64, 16)


def test_merging_a_second_of_1000_requests(benchmark, second):
    pools: list[Pool] = []

    def setup():
        pools[:] = new_pools()
        return (pools, second), {}

    benchmark.pedantic(replay, setup=setup, rounds=3)
    drafts = [step for step in second if isinstance(step, Draft)]
    benchmark.extra_info["nodes a draft"] = sum(len(d.token_ids) for d in drafts) / len(drafts)
    benchmark.extra_info["commits"] = len(second) - len(drafts)
    assert all(pool.content() == pools[0].content() for pool in pools)
    assert benchmark.stats["mean"] < 1.0


def test_selecting_64_rows_for_1000_requests(benchmark, second):
    pools = new_pools()
    replay(pools, second[:-1])
    benchmark.pedantic(select, (pools,), rounds=3)
    benchmark.extra_info["rows"] = len(pools[0].select(64, 16).depths)


def test_decoding_a_second_of_1000_requests(benchmark, second):
    frames = [encode(step) for step in second if isinstance(step, Draft)]

    def read() -> None:
        for frame in frames * REQUESTS:
            decode(frame)

    benchmark.pedantic(read, rounds=3)
    benchmark.extra_info["bytes a draft"] = sum(map(len, frames)) / len(frames)
