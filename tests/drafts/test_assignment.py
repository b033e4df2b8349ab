from random import Random

from wanspec_kernels.drafts.assignment import RACED_REQUESTS, Seats, assign


def test_the_nearest_drafts_and_others_race_while_they_have_little_to_do():
    found = assign([1, 2], [Seats(7, 16, 80.0, 1.0), Seats(8, 16, 10.0, 1.0)], {})
    assert found == {1: {7, 8}, 2: {7, 8}}


def test_every_request_has_a_drafter_before_any_has_two():
    found = assign(range(6), [Seats(7, 4, 10.0, 1.0), Seats(8, 4, 10.0, 1.0)], {})
    assert all(found.values())
    assert sum(len(sources) for sources in found.values()) == 8


def test_many_requests_are_shared_out_and_raced_for_no_more():
    drafters = [Seats(source, 64, 20.0, 1.0) for source in (1, 2, 3)]
    found = assign(range(60), drafters, {})
    loads = [sum(source in sources for sources in found.values()) for source in (1, 2, 3)]
    assert loads == [20, 20, 20]
    assert RACED_REQUESTS < 20


def test_one_of_no_worth_is_chosen_last():
    found = assign(range(9), [Seats(1, 64, 5.0, 0.0), Seats(2, 64, 30.0, 1.0)], {})
    assert all(2 in sources for sources in found.values())


def test_equals_do_not_swap_and_who_was_moved_lately_stays():
    near, far = Seats(1, 1, 10.0, 1.0), Seats(2, 1, 11.0, 1.0)
    current = {1: frozenset({2}), 2: frozenset({1})}
    assert assign([1, 2], [near, far], current) == current
    far = Seats(2, 1, 90.0, 1.0)
    assert assign([1, 2], [near, far], current) == {1: {1}, 2: {2}}
    assert assign([1, 2], [near, far], current, fixed=frozenset({1, 2})) == current


def test_a_declined_request_goes_to_another():
    drafters = [Seats(1, 4, 5.0, 1.0, declined=frozenset({3})), Seats(2, 4, 50.0, 1.0)]
    assert assign([3], drafters, {}) == {3: {2}}


def test_no_drafter_gets_more_than_its_seats():
    rng = Random(3)
    for _ in range(500):
        drafters = [
            Seats(s, rng.randrange(1, 9), rng.choice((None, 1.0, 50.0)), rng.random())
            for s in range(rng.randrange(5))
        ]
        requests = list(range(rng.randrange(20)))
        current = {
            r: frozenset(s for s in range(6) if rng.random() < 0.3)
            for r in requests
            if rng.random() < 0.7
        }
        fixed = frozenset(r for r in requests if rng.random() < 0.3)
        found = assign(requests, drafters, current, fixed=fixed)
        assert found.keys() == set(requests)
        for drafter in drafters:
            load = sum(drafter.source in sources for sources in found.values())
            assert load <= drafter.num_seats
        seats = sum(drafter.num_seats for drafter in drafters)
        served = sum(bool(sources) for sources in found.values())
        assert served >= min(len(requests), seats) - sum(len(found[r]) > 1 for r in fixed) * 5
