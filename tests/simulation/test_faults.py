"""Random faults in virtual time: the text stays the target's own, and nothing is stuck or slow."""

from dataclasses import replace
from random import Random

import pytest

from drafter.growth import GrowthShape
from wanspec_kernels.simulation.link import LinkProfile
from wanspec_kernels.simulation.scenario import DrafterProfile, Machine, Scenario
from wanspec_kernels.simulation.synthetic import generate
from wanspec_kernels.simulation.world import World
from wanspec_kernels.verifier.policies import AlwaysLocal

SHAPE = GrowthShape(width=6, max_children=3)
TOKENS = 30
SCHEDULES = 200


@pytest.fixture(scope="module")
def trace():
    return generate(0.8, positions=1024, texts=4)


def scenario(trace, seed):
    rng = Random(seed)
    drafters = tuple(
        DrafterProfile(
            LinkProfile(
                rng.choice([2.0, 20.0, 80.0]),
                rng.choice([0.0, 15.0]),
                rng.choice([None, 0.5]),
                rng.choice([0.0, 0.1]),
            ),
            Machine(rng.choice([4.0, 25.0])),
            SHAPE,
            rng.choice([16, 256]),
        )
        for _ in range(rng.randint(1, 3))
    )
    return Scenario(
        trace,
        drafters,
        home=rng.choice([None, Machine(3.0), Machine(3.0)]),
        home_shape=SHAPE,
        tokens=TOKENS,
        requests=rng.choice([1, 1, 2]),
        seed=seed,
    )


class Faults:
    """Breaks something every now and then."""

    def __init__(self, world, seed):
        self.world, self.rng, self.counts = world, Random(f"faults {seed}"), {}
        self.sources = 100
        world.env.process(self.process())

    def process(self):
        env, rng = self.world.env, self.rng
        while True:
            yield env.timeout(rng.choice([1.0, 10.0, 60.0]) * rng.random())
            remote = rng.choice(self.world.remotes)
            fault = rng.choice(["kill", "kill", "stop", "stall", "join"])
            self.counts[fault] = self.counts.get(fault, 0) + 1
            match fault:
                case "kill":
                    if remote.session.ready:
                        remote.disconnect()
                case "join":
                    if not remote.session.ready:
                        self.sources += 1
                        remote.reconnect(self.sources)
                case "stop":
                    remote.stop(env.now + 300 * rng.random())
                case "stall":
                    for way in (remote.up, remote.down):
                        way.stall(env.now + rng.choice([20.0, 2000.0]))


def run(trace, seed):
    world = World(scenario(trace, seed))
    faults = Faults(world, seed)
    return world.run(), faults.counts


@pytest.mark.parametrize("first", range(0, SCHEDULES, 50))
def test_the_text_is_the_targets_own_under_any_faults(trace, first):
    seen = {}
    for seed in range(first, first + 50):
        runs, counts = run(trace, seed)
        for found in runs:
            assert found.token_ids == found.expected_ids, seed
            assert len(found.token_ids) == TOKENS
        for fault, count in counts.items():
            seen[fault] = seen.get(fault, 0) + count
    assert all(seen.get(fault, 0) > 10 for fault in ("kill", "join", "stop", "stall"))


def test_faults_leave_co_located_speculation(trace):
    """5 % and a bounded wait more than without any remote, over schedules of one text each."""
    ours = theirs = 0.0
    for seed in range(20):
        base = replace(scenario(trace, seed), home=Machine(3.0), requests=1, tokens=60)
        world = World(base)
        Faults(world, seed)
        ours += world.run()[0].elapsed_ms
        alone = World(replace(base, drafters=(), policy=AlwaysLocal(5)))
        theirs += alone.run()[0].elapsed_ms
    assert ours <= 1.05 * theirs + 20 * 0.4 * 30.0


def test_a_link_that_comes_back_is_of_use_within_two_round_trips(trace):
    link = LinkProfile(40.0)
    world = World(
        Scenario(trace, (DrafterProfile(link, shape=SHAPE),), home=None, tokens=200, seed=2)
    )
    remote, at = world.remotes[0], {}

    def process():
        yield world.env.timeout(500.0)
        remote.disconnect()
        yield world.env.timeout(500.0)
        remote.reconnect(7)
        at["back"] = world.env.now

    generation = world.servings[1].generation
    offer = generation.offer

    def watch(source, draft, now):
        if source == 7:
            at.setdefault("heard", now)
        return offer(source, draft, now)

    generation.offer = watch
    world.env.process(process())
    assert world.run()[0].token_ids == world.texts[1].token_ids[:200]
    # The text takes half a round trip, a pass, and its drafts the other half.
    assert at["heard"] - at["back"] <= 2 * link.round_trip_ms
