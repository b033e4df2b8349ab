from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanspec_kernels.verifier.policy import DraftAtHome, Estimates, Policy, Verify, View, Wait

VIEW = View(
    now_ms=1000.0,
    idle_ms=0.0,
    waited_ms=0.0,
    depth=0,
    home_depth=0,
    max_depth=16,
    acceptance=0.8,
    target_pass_ms=30.0,
    home_pass_ms=4.0,
    home_passes=0,
)
POLICY = Policy()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"depth": 4}, Verify()),
        ({"depth": 2}, Verify()),
        ({}, DraftAtHome(2)),
        ({"home_passes": 8}, Verify()),
        ({"home_passes": None}, Verify()),
        ({"max_depth": 0}, Verify()),
        ({"home_passes": None, "expected_ms": (1002.0,)}, Wait(1002.0)),
        ({"home_passes": None, "expected_ms": (1009.0, 1002.0)}, Wait(1002.0)),
        ({"home_passes": None, "expected_ms": (1004.0,)}, Verify()),  # past 10 % of a pass
        ({"home_passes": None, "expected_ms": (1002.0,), "waited_ms": 1.5}, Verify()),
        ({"home_passes": None, "expected_ms": (999.0,)}, Verify()),  # overdue
        ({"expected_ms": (1002.0,)}, DraftAtHome(2)),  # remote drafts arrive meanwhile, too
        ({"expected_ms": (1002.0,), "home_pass_ms": 25.0}, Wait(1002.0)),
        ({"home_pass_ms": 60.0}, Verify()),
        ({"acceptance": 0.05}, Verify()),
        ({"depth": 5, "expected_ms": (1002.0,)}, Verify()),
    ],
)
def test_decisions(changes, expected):
    assert POLICY.decide(replace(VIEW, **changes)) == expected


def drafted_at_home(view):
    """Home passes of a round in which nothing arrives from elsewhere."""
    passes = 0
    while isinstance(decision := POLICY.decide(view), DraftAtHome):
        passes += decision.passes
        view = replace(
            view,
            idle_ms=view.home_pass_ms * passes,
            home_passes=passes,
            home_depth=passes,
            depth=max(view.depth, passes),
        )
    return passes


def test_home_passes_at_the_demos_defaults():
    assert drafted_at_home(VIEW) == 5
    assert drafted_at_home(replace(VIEW, depth=1)) in (0, 4, 5)
    assert drafted_at_home(replace(VIEW, depth=2)) == 0


views = st.builds(
    View,
    now_ms=st.floats(0, 1e9),
    idle_ms=st.floats(0, 1e4),
    waited_ms=st.floats(0, 100),
    depth=st.integers(0, 40),
    home_depth=st.integers(0, 40),
    max_depth=st.integers(0, 32),
    acceptance=st.floats(0, 1),
    target_pass_ms=st.floats(0.01, 1e4),
    home_pass_ms=st.floats(0.001, 1e4),
    home_passes=st.none() | st.integers(0, 8),
    expected_ms=st.lists(st.floats(0, 1e9), max_size=3).map(tuple),
)


@settings(derandomize=True, database=None, deadline=None)
@given(views)
def test_a_wait_is_never_past_its_bound(view):
    decision = POLICY.decide(view)
    if isinstance(decision, Wait):
        waited = view.waited_ms + decision.until_ms - view.now_ms
        assert waited <= 0.1 * view.target_pass_ms + 1e-6
        assert decision.until_ms > view.now_ms
    if isinstance(decision, DraftAtHome):
        assert view.home_passes is not None
        assert 1 <= decision.passes <= 8 - view.home_passes


@settings(derandomize=True, database=None, deadline=None)
@given(views, st.lists(st.floats(0.0, 50.0), min_size=64, max_size=64))
def test_every_round_ends_in_a_pass(view, expected_in):
    """Whatever sources promise anew each time, and if the home drafter brings nothing at all."""
    # At 0.1 ms a wait, the shortest, a round has room for 50 of them and 8 home passes.
    view = replace(view, target_pass_ms=min(view.target_pass_ms, 50.0), waited_ms=0.0)
    for ahead in expected_in:
        view = replace(view, expected_ms=(view.now_ms + ahead,))
        match POLICY.decide(view):
            case Verify():
                return
            case Wait(until_ms):
                took = until_ms - view.now_ms
                view = replace(view, waited_ms=view.waited_ms + took)
            case DraftAtHome(passes):
                took = passes * view.home_pass_ms
                assert view.home_passes is not None
                view = replace(view, home_passes=view.home_passes + passes)
        view = replace(view, now_ms=view.now_ms + took, idle_ms=view.idle_ms + took)
    pytest.fail("a round of 64 decisions without a target pass")


def test_estimates_learn_and_return_to_their_prior():
    estimates = Estimates()
    assert (estimates.target_pass_ms, estimates.home_pass_ms) == (30.0, 3.75)
    for _ in range(100):
        estimates.observe_pass(20.0, 8, 0)
    assert estimates.acceptance < 0.2
    for _ in range(400):
        estimates.observe_pass(20.0, 0, 0)
    assert estimates.acceptance == pytest.approx(0.7, abs=0.01)
    estimates.observe_pass(5000.0, 0, 0)  # one slow pass is no trend
    assert estimates.target_pass_ms == 20.0
    estimates.observe_home(5000.0, 2)  # warming up
    estimates.observe_home(8.0, 2)
    assert estimates.home_pass_ms == 4.0


def test_a_home_drafter_found_slow_is_tried_again_at_a_bounded_cost():
    estimates = Estimates()
    estimates.observe_home(900.0, 1)
    estimates.observe_home(400.0, 1)
    passes = 0
    while estimates.home_pass_ms == 400.0:
        estimates.observe_pass(20.0, 4, 2)
        passes += 1
        assert passes <= 1001
    assert passes * 20.0 >= 50 * 400.0
