"""In virtual time, too, every wait ends, whatever happens and whoever is silent."""

from math import inf

import pytest

from wanspec_kernels.control.tuning import TUNING
from wanspec_kernels.simulation.faults import Faults
from wanspec_kernels.simulation.link import LinkProfile
from wanspec_kernels.simulation.scenario import DrafterProfile, Machine, Scenario
from wanspec_kernels.simulation.synthetic import generate
from wanspec_kernels.simulation.world import World

TOKENS = 30
TARGET, HOME_MS = Machine(30.0), 3.0
# A pass, the wait for remotes, and all the passes at home that a round may have.
ROUND_MS = 30.0 * (1 + TUNING.max_wait_passes) + TUNING.max_home_passes * HOME_MS


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


@pytest.mark.parametrize("home", [None, Machine(HOME_MS)], ids=["remotes", "home"])
@pytest.mark.parametrize("seed", range(6))
def test_every_wait_ends_whatever_happens(trace, home, seed):
    drafters = tuple(DrafterProfile(LinkProfile(ms)) for ms in (0.1, 21.7))
    world = World(Scenario(trace, drafters, home=home, target=TARGET, tokens=TOKENS, seed=seed))
    Faults(world, seed, ("kill", "join", "stop", "stall", "jump"))
    # The first home drafts may be waited for in passes of which nothing is known yet.
    ends_within(world, TOKENS * ROUND_MS)


@pytest.mark.parametrize("home", [None, Machine(HOME_MS)], ids=["remotes", "home"])
@pytest.mark.parametrize("clock_ms", [0.0, 3.6e6 / 7, 1e9 / 3])
def test_a_silent_drafter_costs_bounded_waits(trace, home, clock_ms):
    drafters = (DrafterProfile(LinkProfile(3.3)),)
    world = World(Scenario(trace, drafters, home=home, target=TARGET, tokens=TOKENS))
    world.clock.ahead_ms = clock_ms
    world.start()  # The drafter falls silent once it has been asked.
    world.remotes[0].stop(inf)
    statistics = ends_within(world, TOKENS * ROUND_MS)
    assert statistics.remote_tokens_accepted == 0
