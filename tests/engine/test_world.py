"""Every wait ends, whatever drafters and wakes do; texts are the target's own; nothing is left."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.world import KINDS, PATIENCE_MS, World
from wanspec_kernels.drafts.outcome import Kind


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_any_drafters_leave_the_texts_and_the_waits_as_they_should_be(first):
    for seed in range(first, first + 20):
        World(seed).run().check()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    kinds=st.lists(st.sampled_from(KINDS), max_size=3),
    wakes_ms=st.lists(st.floats(0.0, 3000.0), max_size=30),
    home_pauses=st.sampled_from([0.0, 0.2]),
)
def test_every_wait_ends_whoever_drafts_and_whatever_wakes(seed, kinds, wakes_ms, home_pauses):
    World(seed, kinds, home_pauses=home_pauses, wakes_ms=wakes_ms).run().check()


def test_a_home_drafter_that_pauses_holds_up_a_round_for_two_passes():
    longest_ms = 0.0
    for seed in range(40):
        world = World(seed, home_pauses=0.2).run()
        world.check()
        longest_ms = max(longest_ms, world.longest_idle_ms)
    assert longest_ms >= PATIENCE_MS  # The bound is reached, or the pauses were none.


def test_the_schedules_reach_every_outcome_and_wait():
    kinds = Counter()
    waited = 0.0
    for seed in range(30):
        world = World(seed, ["any", "lies", "leaves"]).run()
        for statistics in world.statistics.values():
            kinds += statistics.outcomes
            waited += statistics.waited_ms
        kinds["quarantined"] += world.exchange.counters["sessions_quarantined"]
    assert kinds.keys() == {*Kind, "quarantined"}
    assert waited > 0
