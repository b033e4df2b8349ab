"""The study of many: its world in small, its costs, and what its report reads out of them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bench import scale_report
from bench.scale_costs import messages
from bench.scale_world import HOT, REGIONS, Cost, Settings, World, round_trip_ms

# Slots of 10 ms a token, or of 7 with a drafter at hand; one 150 ms away saves nothing.
COST = Cost(10.0, (4.0, 100.0, 150.0), (7.0, 7.0, 11.0))
SMALL = Settings(COST, in_flight=300, drafters=100, services=10.0, steps=48)


def test_a_day_of_load_is_its_mean_and_drafters_are_lent_against_it():
    days = np.linspace(0, 1, 97)[:-1]
    for region in REGIONS:
        loads = [region.load(day) for day in days]
        assert np.mean(loads) == pytest.approx(1.0)
        idle = [region.idle(day) for day in days]
        assert np.argmax(loads) == np.argmin(idle)
        assert 0.2 <= min(idle) < max(idle) <= 0.9
    assert sum(region.weight for region in REGIONS) == pytest.approx(1.0)


def test_distances_are_those_of_the_earth():
    names = {region.name: region for region in REGIONS}
    east, japan = names["us-east"], names["japan"]
    assert round_trip_ms(east, east) == 4.0
    assert round_trip_ms(east, japan) == round_trip_ms(japan, east)
    assert 60 < round_trip_ms(east, names["ireland"]) < 100
    assert 140 < round_trip_ms(east, japan) < 190


def test_without_drafters_a_token_takes_what_it_takes_at_home():
    found = World(replace(SMALL, hot_load=0.6)).run()
    assert found.remote_tokens == found.evictions == 0
    assert np.percentile(found.token_ms, 50) == pytest.approx(10.0)
    # Twenty in flight on the mean in ten mean requests' times a day, by Little's law.
    mean = sum((0.6 if r is REGIONS[HOT] else 1.0) * r.weight for r in REGIONS)
    assert found.requests == pytest.approx(300 * mean * 10, rel=0.15)


def test_a_region_past_its_slots_waits_unless_drafters_take_the_difference():
    """On paper 10 / 7 of the load is carried; one past it waits again."""
    loads = {0: 1.25, 100: 1.25, 101: 1.8}
    waits = []
    for seats, load in loads.items():
        found = World(replace(SMALL, in_flight=1000, seats=seats, hot_load=load)).run()
        waits.append(np.percentile(found.waits_ms, 95) / found.service_ms)
        if seats:
            assert found.remote_tokens > 0.9 * found.tokens
            assert found.remote_rtt_ms / found.remote_tokens < 100
    assert waits[1] < 0.05
    assert waits[0] > 0.2
    assert waits[2] > 0.2


def test_drafters_that_leave_cost_their_requests_nothing_but_time():
    few = World(replace(SMALL, seats=2, steps=96))
    found = few.run()
    assert found.evictions > 0
    assert 0 < found.remote_tokens < found.tokens
    assert all(ms >= 7.0 - 1e-6 for ms in found.token_ms)
    for q, users in enumerate(few.users):
        assert len(users) <= few.seats[q]
    assert all(busy <= slots for busy, slots in zip(few.busy, few.slots, strict=True))


def test_a_seed_reproduces_a_day():
    some = replace(SMALL, seats=4)
    assert World(some).run() == World(some).run()
    assert World(some).run().waits_ms != World(replace(some, seed=1)).run().waits_ms


def test_what_a_requests_messages_cost_is_measured():
    found = messages(16, tokens=40)
    assert 50 < found["drafts_per_s"] < 400
    assert 0 < found["core_share"] < 1
    assert all(math.isfinite(value) for value in found.values())


def test_capacity_is_read_between_two_loads():
    runs = [
        {"hot_load": load, "wait": [0.0, wait, 1.0]}
        for load, wait in [(1.0, 0.0), (1.1, 0.05), (1.2, 0.15)]
    ]
    assert scale_report.capacity(runs) == pytest.approx(1.15)
    assert scale_report.capacity(runs[:2]) is None


def test_the_hot_regions_peak_is_its_afternoon():
    local = 24 * scale_report.peak_day() + REGIONS[HOT].longitude / 15
    assert local % 24 == pytest.approx(15.0, abs=0.2)
