"""In virtual time, too, every wait ends, whatever the policy answers and whoever is silent."""

from itertools import cycle
from math import inf, nan

import pytest

from wanspec_kernels.control.home_work import MAX_PASSES
from wanspec_kernels.control.policies import EntropyGate, ExpectedGain, NeverLocal
from wanspec_kernels.control.policy import MAX_WAIT_MS, DraftAtHome, Verify, Wait
from wanspec_kernels.simulation.faults import Faults
from wanspec_kernels.simulation.link import LinkProfile
from wanspec_kernels.simulation.scenario import DrafterProfile, Machine, Scenario
from wanspec_kernels.simulation.synthetic import generate
from wanspec_kernels.simulation.world import World

TOKENS = 30
TARGET_MS, HOME_MS = 30.0, 3.0
MACHINES = {"target": Machine(TARGET_MS), "home": Machine(HOME_MS)}
HOME, VERIFY = ("home", 1), ("verify",)


class Recited:
    """A policy whose answers are these, in turn, whatever it sees."""

    def __init__(self, answers):
        self._answers = cycle(answers)

    def decide(self, view):
        match next(self._answers):
            case ("wait", ms):
                return Wait(view.now_ms + ms)
            case ("home", passes):
                return DraftAtHome(passes)
        return Verify()


def waits(*times_ms):
    return [("wait", ms) for ms in times_ms]


@pytest.fixture(scope="module")
def trace():
    return generate(0.8, positions=1024, texts=4)


def ends_within(world, ms):
    def deadline():
        yield world.env.timeout(ms)
        raise AssertionError(f"expected the text within {ms:.0f} ms")

    world.env.process(deadline())
    (found,) = world.run()
    assert found.token_ids == found.expected_ids
    assert len(found.token_ids) == TOKENS
    return found.statistics


@pytest.mark.parametrize(
    "answers",
    [
        waits(inf),
        waits(nan),
        waits(-1.0, 0.0),
        waits(1e-9, 0.1),
        waits(0.1, 33.3),
        [*waits(inf), HOME],
        [*waits(7.7), VERIFY],
        [HOME],
    ],
    ids=repr,
)
@pytest.mark.parametrize("seed", range(4))
def test_absurd_waits_end(trace, answers, seed):
    drafters = tuple(DrafterProfile(LinkProfile(ms)) for ms in (0.1, 21.7))
    world = World(
        Scenario(trace, drafters, policy=Recited(answers), tokens=TOKENS, seed=seed, **MACHINES)
    )
    Faults(world, seed, ("kill", "join", "stop", "stall", "jump"))
    round_ms = MAX_WAIT_MS + MAX_PASSES * HOME_MS + TARGET_MS
    statistics = ends_within(world, TOKENS * round_ms)
    jumped_ms = world.clock.ahead_ms
    assert statistics.waited_ms <= MAX_WAIT_MS * statistics.target_passes + jumped_ms + 1e-6


@pytest.mark.parametrize("policy", [ExpectedGain(), NeverLocal(), EntropyGate()], ids=repr)
@pytest.mark.parametrize("clock_ms", [0.0, 3.6e6 / 7, 1e9 / 3])
def test_a_silent_drafter_costs_bounded_waits(trace, policy, clock_ms):
    drafters = (DrafterProfile(LinkProfile(3.3)),)
    world = World(Scenario(trace, drafters, policy=policy, tokens=TOKENS, **MACHINES))
    world.clock.ahead_ms = clock_ms
    world.remotes[0].session.round_trip_ms = 3.3
    world.remotes[0].stop(inf)
    statistics = ends_within(world, TOKENS * (1.5 * TARGET_MS + 16 * HOME_MS))
    assert statistics.remote_tokens_accepted == 0
