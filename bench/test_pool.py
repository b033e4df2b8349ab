"""Merging: 1,000 live requests, each with 25 additions a second and the commits in between.

What is replayed is what one drafter sends and one target commits in a simulated second; a round is
that second for every request, so that a mean below 1 s is less than one core.
"""

import time

import pytest

from drafter.growth import GrowthShape
from wanspec_kernels.drafts.pool import Kind, Pool
from wanspec_kernels.engine.scheduler import Committed
from wanspec_kernels.simulation.link import LinkProfile
from wanspec_kernels.simulation.scenario import DrafterProfile, Machine, Scenario
from wanspec_kernels.simulation.traced import PROMPT
from wanspec_kernels.simulation.traces import load
from wanspec_kernels.simulation.world import Event, Offered, World
from wanspec_kernels.wire import Draft, decode, encode

# Of a core: what others do on the machine is left out.
pytestmark = pytest.mark.benchmark(timer=time.process_time)

REQUESTS = 1000
ADDITIONS = 25  # a second
SHAPE = GrowthShape(width=4)  # rows of a pass over 1,000 requests: 4,000


def recorded(scenario: Scenario) -> tuple[World, list[tuple[str, object]]]:
    """A world that has run, and what happened to its requests' pools."""
    happened: list[tuple[str, object]] = []

    def note(event: Event) -> None:
        match event:
            case Offered(_, draft):
                happened.append(("offer", draft))
            case Committed(_, token_ids):
                happened.append(("commit", token_ids))

    world = World(scenario, note)
    world.run()
    return world, happened


@pytest.fixture(scope="module")
def second() -> list[tuple[str, object]]:
    """Offers and commits of one request, `ADDITIONS` of the former."""
    drafter = DrafterProfile(LinkProfile(30.0), Machine(1000.0 / ADDITIONS), SHAPE, 256)
    # A target that serves 1,000 requests at once takes its time, and drafts are mostly in time.
    target = Machine(200.0)
    world, happened = recorded(
        Scenario(load("bundled"), (drafter,), home=None, target=target, tokens=200)
    )
    outcomes = world.record.runs[0].statistics.outcomes
    assert outcomes[Kind.NEW] + outcomes[Kind.LATE] > 0.8 * outcomes.total()
    offers, kept = 0, []
    for event in happened:
        offers += event[0] == "offer"
        kept.append(event)
        if offers == ADDITIONS:
            return kept
    raise AssertionError(f"expected {ADDITIONS} additions, got {offers}")


def new_pools() -> list[Pool]:
    pools = [Pool(1, PROMPT, vocab_size=4096) for _ in range(REQUESTS)]
    for pool in pools:
        pool.enrol(1)
    return pools


def replay(pools: list[Pool], second) -> None:
    for name, value in second:
        for pool in pools:
            if name == "offer":
                pool.offer(1, value)
            else:
                pool.commit(value)


def select(pools: list[Pool]) -> None:
    for pool in pools:
        pool.select(64, 16)


def test_merging_a_second_of_1000_requests(benchmark, second):
    pools: list[Pool] = []

    def setup():
        pools[:] = new_pools()
        return (pools, second), {}

    benchmark.pedantic(replay, setup=setup, rounds=3)
    drafts = [value for name, value in second if name == "offer"]
    benchmark.extra_info["nodes a draft"] = sum(len(d.token_ids) for d in drafts) / len(drafts)
    benchmark.extra_info["commits"] = sum(name == "commit" for name, _ in second)
    assert all(pool.content() == pools[0].content() for pool in pools)
    assert benchmark.stats["mean"] < 1.0


def test_selecting_64_rows_for_1000_requests(benchmark, second):
    pools = new_pools()
    replay(pools, second[:-1])
    benchmark.pedantic(select, (pools,), rounds=3)
    benchmark.extra_info["rows"] = len(pools[0].select(64, 16).depths)


def test_decoding_a_second_of_1000_requests(benchmark, second):
    frames = [encode(value) for name, value in second if isinstance(value, Draft)]

    def read() -> None:
        for frame in frames * REQUESTS:
            decode(frame)

    benchmark.pedantic(read, rounds=3)
    benchmark.extra_info["bytes a draft"] = sum(map(len, frames)) / len(frames)
