"""Whole runs in virtual time: exactness, reproduction, and what must follow from the numbers."""

from dataclasses import replace

import pytest
import simpy

from drafter.growth import GrowthShape
from drafter.home import HOME_SHAPE
from wanspec_kernels.simulation.link import LinkProfile, OneWay
from wanspec_kernels.simulation.machine import Accelerator
from wanspec_kernels.simulation.measures import (
    CHAIN,
    best_chain,
    best_tree,
    in_step,
    measure,
    plain,
    tree_candidates,
)
from wanspec_kernels.simulation.profiles import H200_1B, H200_8B
from wanspec_kernels.simulation.rounds import Rounds
from wanspec_kernels.simulation.scenario import DrafterProfile, Machine, Scenario
from wanspec_kernels.simulation.synthetic import generate
from wanspec_kernels.simulation.traces import load
from wanspec_kernels.simulation.world import World


@pytest.fixture(scope="module")
def trace():
    return generate(0.9)


def near(round_trip_ms=10.0, **link):
    return DrafterProfile(LinkProfile(round_trip_ms, **link))


@pytest.mark.parametrize("home", [None, Machine(3.0)], ids=["remotes", "home"])
@pytest.mark.parametrize(
    "link",
    [
        LinkProfile(10.0),
        LinkProfile(40.0, jitter_ms=10.0, loss=0.05, bandwidth_mbit=2.0),
        LinkProfile(20.0, stall_ms=300.0, stall_every_ms=700.0),
    ],
    ids=["near", "lossy", "stalling"],
)
def test_the_text_is_the_targets_own(trace, home, link):
    scenario = Scenario(trace, (DrafterProfile(link),), home=home, tokens=80)
    assert measure(scenario).exact


def test_the_bundled_pairs_trace_runs():
    found = measure(Scenario(load("bundled"), (near(),), tokens=80))
    assert found.exact
    assert found.tokens_per_pass > 2


def test_a_seed_reproduces_a_run(trace):
    link = LinkProfile(30.0, jitter_ms=8.0, loss=0.02)
    scenario = Scenario(trace, (DrafterProfile(link),), tokens=60, seed=5)
    assert measure(scenario) == measure(scenario)
    assert measure(scenario) != measure(replace(scenario, seed=6))


def test_plain_decoding_takes_a_pass_a_token(trace):
    alone = plain(Scenario(trace, (near(),), tokens=40))
    assert alone.latency_ms == pytest.approx(30.0)
    assert (alone.tokens_per_pass, alone.local_passes, alone.wire_bytes) == (1.0, 0.0, 0.0)


def test_a_round_takes_its_passes_and_the_targets(trace):
    found = measure(Rounds(Scenario(trace, tokens=60), 3, HOME_SHAPE))
    assert found.exact
    assert found.latency_ms * found.tokens_per_pass == pytest.approx(39.0, rel=0.01)
    assert found.local_passes * found.tokens_per_pass == pytest.approx(3.0, rel=0.01)


def test_the_best_tree_is_no_worse_than_the_best_chain(trace):
    scenario = Scenario(trace, tokens=60)
    tree, chain = best_tree(scenario, depths=(4, 8)), best_chain(scenario, depths=(4, 8))
    assert tree.measures.latency_ms < chain.measures.latency_ms
    assert chain.measures.rows_per_pass <= 1 + chain.passes


def test_rows_cost_what_they_cost(trace):
    free, dear = Scenario(trace, tokens=60), Scenario(trace, tokens=60, target=Machine(30.0, 1.0))
    rounds = [measure(Rounds(one, 4, HOME_SHAPE)) for one in (free, dear)]
    more_ms = (rounds[0].rows_per_pass - 1) / rounds[0].tokens_per_pass
    assert rounds[1].latency_ms == pytest.approx(rounds[0].latency_ms + more_ms, rel=0.01)
    # The scheduler learns it, and takes fewer.
    learnt = [measure(replace(one, tokens=300)).rows_per_pass for one in (free, dear)]
    assert learnt[1] < 0.5 * learnt[0]


def test_a_near_drafter_saves_home_passes_at_no_more_latency(trace):
    alone = measure(Rounds(Scenario(trace, tokens=300), 6, HOME_SHAPE))
    helped = measure(Scenario(trace, (near(),), tokens=300))
    assert helped.latency_ms < alone.latency_ms
    assert helped.local_passes < 0.5 * alone.local_passes
    far = measure(Scenario(trace, (near(150.0),), tokens=300))
    assert far.latency_ms > helped.latency_ms


def test_requests_share_machines(trace):
    many = measure(Scenario(trace, (near(),), requests=3, tokens=40))
    assert many.exact
    assert many.hot_ms < measure(Scenario(trace, (near(),), tokens=40)).hot_ms


def test_requests_that_come_later_take_part_from_then_on(trace):
    one = Scenario(trace, home=None, requests=3, tokens=20, arrivals_ms=(0.0, 0.0, 90.0))
    world = World(one)
    runs = world.run()
    assert all(run.token_ids == run.expected_ids for run in runs)
    # Nobody drafts, so each has a token in every pass of 30 ms from its arrival on.
    assert [run.elapsed_ms for run in runs] == pytest.approx([600.0] * 3, abs=30.1)
    assert world.env.now == pytest.approx(690.0, abs=30.1)
    assert {each.requests for each in world.record.passes} == {1, 2, 3}
    with pytest.raises(ValueError, match="arrivals_ms: expected at most 1, one a request, got 2"):
        replace(one, requests=1, arrivals_ms=(0.0, 1.0))


def test_a_restart_goes_on_with_the_texts(trace):
    world = World(Scenario(trace, (near(),), requests=2, tokens=40, arrivals_ms=(0.0, 150.0)))
    for at_ms in (100.0, 200.0):
        world.env.timeout(at_ms).callbacks.append(lambda _: world.restart())
    for run in world.run():
        assert run.token_ids == run.expected_ids
        assert len(run.token_ids) == 40


def test_drafters_that_are_shared_have_a_part_of_the_requests_each(trace):
    world = World(
        Scenario(trace, (near(), near()), shares_drafters=True, requests=4, tokens=20, home=None)
    )
    world.start()
    world.env.run(until=20.0)
    assert [remote.drafter.requests for remote in world.remotes] == [(1, 3), (2, 4)]


def test_more_requests_get_fewer_rows_each(trace):
    def rows(requests):
        one = Scenario(
            load("bundled"), target=H200_8B, home=H200_1B, requests=requests, context=2048,
            tokens=40,
        )  # fmt: skip
        return measure(one).rows_per_pass

    one, some, many = rows(1), rows(8), rows(64)
    assert one > 1.5 * some > 1.5 * many
    assert many > 1.5


def test_a_batch_is_tuned_over_rows_too(trace):
    many = Scenario(trace, target=H200_8B, home=H200_1B, requests=32, context=2048, tokens=20)
    candidates = tree_candidates(many, depths=(2, 4))
    assert {c.rows for c in candidates} == {3, 4, 6, 8, 12, 16, 32}
    assert CHAIN in {c.shape for c in candidates}
    assert in_step(many).requests == 1
    # In step, one of the requests sees the machine as all of them take it.
    assert in_step(many).target.time_ms(4, 100) == pytest.approx(H200_8B.time_ms(128, 3200))


def test_an_accelerator_runs_one_pass_at_a_time():
    env = simpy.Environment()
    machine, seen = Accelerator(env), []
    for at_ms, took_ms in ((0.0, 30.0), (5.0, 3.0), (40.0, 30.0)):
        env.timeout(at_ms, took_ms).callbacks.append(
            lambda timeout: machine.run(
                timeout.value,
                lambda: seen.append(("ended", env.now)),
                lambda: seen.append(("began", env.now)),
            )
        )
    env.run()
    assert sorted(seen, key=lambda each: (each[1], each[0])) == [
        ("began", 0.0), ("began", 30.0), ("ended", 30.0), ("ended", 33.0),
        ("began", 40.0), ("ended", 70.0),
    ]  # fmt: skip
    assert machine.busy_ms == 63.0


def test_a_link_delays_queues_and_stalls():
    slow = OneWay(LinkProfile(20.0, bandwidth_mbit=8.0), "1")
    assert [slow.send(0.0, 1000).arrival_ms for _ in range(3)] == pytest.approx([11.0, 12.0, 13.0])
    stalling = OneWay(LinkProfile(20.0, stall_ms=100.0, stall_every_ms=1000.0), "1")
    assert stalling.send(880.0, 1).arrival_ms == pytest.approx(890.0)
    assert stalling.send(895.0, 1).arrival_ms == pytest.approx(1000.0)
    lossy = OneWay(LinkProfile(20.0, loss=0.3), "1")
    arrivals = [lossy.send(10.0 * i, 1).arrival_ms for i in range(200)]
    assert arrivals == sorted(arrivals)
    assert max(a - 10.0 * i for i, a in enumerate(arrivals)) > 200.0


def test_a_new_bandwidth_is_that_of_what_still_waits_in_a_link():
    way = OneWay(LinkProfile(20.0, bandwidth_mbit=0.8), "1")
    sent = [way.send(0.0, 1000) for _ in range(3)]
    assert [carried.arrival_ms for carried in sent] == pytest.approx([20.0, 30.0, 40.0])
    assert way.limit(8.0, 15.0) == sent[1:]
    assert [carried.arrival_ms for carried in sent] == pytest.approx([20.0, 25.5, 26.5])
    way.stall(50.0)
    assert way.send(16.0, 1000).arrival_ms == 50.0
    assert len(way.limit(None, 16.0)) == 2
    assert sent[2].arrival_ms == pytest.approx(26.0)


def test_a_link_that_is_wide_again_delivers_what_waited(trace):
    world = idle(trace, max_nodes=256)
    remote = world.remotes[0]
    remote.limit(remote.down, 1e-4)  # the request takes longer than the test
    run_until(world, 1000.0)
    assert remote.drafter.requests == ()
    remote.limit(remote.down, None)
    world.env.run(until=1080.0)
    assert remote.drafter.requests == (1,)


def test_a_drafter_that_is_always_late_is_asked_for_less(trace):
    """Its bytes are saved, and nothing else changes."""
    first, double = (
        DrafterProfile(LinkProfile(ms), shape=GrowthShape(32, max_children=16), max_nodes=512)
        for ms in (10.0, 16.0)
    )
    both = Scenario(trace, (first, double), home=None, tokens=600)
    alone = measure(replace(both, drafters=(first,)))
    found = measure(both)
    assert found.exact
    assert found.latency_ms == pytest.approx(alone.latency_ms, rel=0.03)
    assert found.wire_bytes < 1.8 * alone.wire_bytes  # twice, were it asked for as much


def test_measured_delays_are_played_back_in_order_and_both_ways_at_once():
    measured = (0.0, 5.0, 0.0, 40.0)
    profile = LinkProfile(20.0, up_ms=measured, measured_every_ms=10.0)
    way = OneWay(profile, "1", measured, begin=0.25)
    sent = [0.0, 10.0, 20.0, 30.0, 70.0]
    # The second of the four is first; what follows a late one does not overtake it.
    assert [way.send(at, 1).arrival_ms for at in sent] == pytest.approx(
        [15.0, 20.0, 70.0, 70.0, 80.0]
    )


def test_a_link_that_stalled_when_measured_slows_a_run(trace):
    calm = LinkProfile(10.0, up_ms=(0.0,) * 50, down_ms=(0.0,) * 50, measured_every_ms=4.0)
    rough = replace(calm, up_ms=(0.0,) * 25 + (80.0,) * 25)
    found = [
        measure(Scenario(trace, (DrafterProfile(link),), home=None, tokens=300))
        for link in (LinkProfile(10.0), calm, rough)
    ]
    assert found[0] == found[1]
    assert found[2].exact
    assert found[2].latency_ms > 1.1 * found[1].latency_ms


def test_a_drafter_with_a_better_model_serves_better(trace):
    small = generate(0.7)
    link = LinkProfile(30.0)
    found = [
        measure(Scenario(small, (drafter,), home=None, tokens=50))
        for drafter in (
            DrafterProfile(link),
            DrafterProfile(link, trace=small),
            DrafterProfile(link, trace=trace),
        )
    ]
    assert found[0] == found[1]
    assert found[2].exact
    assert found[2].latency_ms < 0.9 * found[0].latency_ms


def test_a_drafters_trace_is_of_the_same_texts(trace):
    other = DrafterProfile(LinkProfile(30.0), trace=generate(0.9, seed=1))
    with pytest.raises(ValueError, match="expected the texts"):
        measure(Scenario(trace, (other,), tokens=10))


def test_a_machine_takes_what_was_measured():
    machine = Machine(0.0, measured=((1, 30.0), (17, 38.0)))
    assert [machine.time_ms(rows) for rows in (1, 9, 17, 40)] == [30.0, 34.0, 38.0, 38.0]
    assert machine.shared(2).time_ms(4) == machine.time_ms(8)
    # A row of 0.5 ms more is 1 ms where two requests have one each.
    assert Machine(30.0, 0.5).shared(2).time_ms(3) == 32.0


def test_what_a_drafter_sends_a_second_is_measured(trace):
    found = measure(Scenario(trace, (near(),), tokens=100))
    # A pass of 4 ms brings 128 nodes at most, with their ancestors two to four messages.
    assert 250 < found.drafts_per_s < 1000
    assert found.up_mbit == pytest.approx(found.wire_bytes * 8e-3 / found.latency_ms, rel=0.1)


@pytest.mark.parametrize("mbit", [2.0, 0.5])
def test_a_narrow_link_is_not_filled_with_what_is_stale(trace, mbit):
    """It takes a tenth, or less, of what the drafter could send: the likeliest goes."""
    link = LinkProfile(20.0, bandwidth_mbit=mbit)
    found = measure(Scenario(trace, (DrafterProfile(link),), home=None, tokens=150))
    assert found.exact
    assert found.latency_ms < 20.0  # 30 without any draft
    assert found.up_mbit < mbit


def idle(trace, max_nodes):
    """A drafter that grows its tree at once, for a target that takes an hour a pass."""
    fast = DrafterProfile(LinkProfile(150.0), machine=Machine(0.1), max_nodes=max_nodes)
    return World(Scenario(trace, (fast,), target=Machine(3.6e6), home=None, tokens=100))


def run_until(world, at_ms):
    world.start()
    world.env.run(until=at_ms)


def test_an_idle_drafter_sends_its_tree_as_the_link_answers(trace):
    world = idle(trace, max_nodes=600)
    run_until(world, 75.0 + 149.0)  # half a round trip for the request; no answer yet
    drafter = world.remotes[0].drafter
    assert 0 < drafter.counters.num_nodes < 600  # the first window
    assert (drafter.busy, drafter.num_unsent > 0) == (False, True)
    world.env.run(until=75.0 + 10 * 150.0)
    assert drafter.counters.num_nodes >= 600
    assert (drafter.busy, drafter.num_unsent) == (False, 0)


def test_an_idle_drafter_does_not_spin_while_its_window_is_full(trace):
    world = idle(trace, max_nodes=2048)
    remote = world.remotes[0]
    world.env.run(until=250.0)  # the greeting
    world.start()
    world.env.run(until=350.0)  # The request is on its way, or there.
    remote.up.stall(1e9)
    world.env.run(until=900.0)
    before = remote.num_rounds
    world.env.run(until=2300.0)
    assert (remote.drafter.busy, remote.drafter.num_unsent > 0) == (False, True)
    assert 0 < remote.num_rounds - before < 30
