from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanspec_kernels.control.estimates import Estimates
from wanspec_kernels.control.policies import AlwaysLocal, EntropyGate, ExpectedGain, NeverLocal
from wanspec_kernels.control.policy import Arrival, DraftAtHome, Verify, View, Wait

VIEW = View(
    now_ms=1000.0,
    idle_ms=0.0,
    waited_ms=0.0,
    verifying=False,
    left_ms=0.0,
    expected_tokens=1.0,
    open_mass=1.0,
    entropy_bits=0.0,
    depth=0,
    home_depth=0,
    max_depth=16,
    coverage=0.85,
    target_pass_ms=30.0,
    home_pass_ms=3.0,
    tokens_per_ms=0.12,
    home_passes=0,
    home_is_busy=False,
)
NOTHING_HERE_SOON = (Arrival(1002.0, 4.0, 1.0),)
DEEP = {"depth": 6, "expected_tokens": 4.5, "open_mass": 0.3}
WORTHLESS = {"remote_worth": 0.5, "behind_ms": -1e3}
BEHIND = {"behind_ms": 1.0}
HALF = {"remote_worth": 0.6}
RUNNING = {"verifying": True, "left_ms": 30.0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, DraftAtHome(1)),
        (DEEP, Verify()),
        ({"open_mass": 0.9, "depth": 2}, DraftAtHome(1)),
        ({"home_passes": 16}, Verify()),
        ({"home_passes": None}, Verify()),
        ({"max_depth": 0}, Verify()),
        ({"home_pass_ms": 60.0}, Verify()),
        ({"coverage": 0.05}, Verify()),
        ({"home_passes": None, "arrivals": NOTHING_HERE_SOON}, Wait(1002.0)),
        ({"home_passes": None, "arrivals": (Arrival(1013.0, 4.0, 1.0),)}, Verify()),  # too late
        ({"home_passes": None, "arrivals": (Arrival(999.0, 4.0, 1.0),)}, Verify()),  # overdue
        ({"home_passes": None, "arrivals": NOTHING_HERE_SOON, "waited_ms": 11.0}, Verify()),
        # A pass at home costs what a remote brings for nothing but time.
        ({"home_pass_ms": 25.0, "arrivals": NOTHING_HERE_SOON}, Wait(1002.0)),
        ({**RUNNING, **DEEP, "open_mass": 0.7}, DraftAtHome(1)),
        ({**RUNNING, **DEEP, "open_mass": 0.1}, Verify()),
        ({**RUNNING, "home_is_busy": True}, Verify()),
        ({**RUNNING, "home_passes": 12}, Verify()),
        ({**RUNNING, **DEEP, "open_mass": 0.3}, Verify()),
        ({**RUNNING, **DEEP, "open_mass": 0.3, "home_passes": 2}, Verify()),
        ({**RUNNING, **DEEP, "open_mass": 0.6, "home_passes": 2}, DraftAtHome(1)),  # begun
        # A near remote leaves home little to do; a far one more.
        ({"reply_ms": 17.0, "home_passes_per_token": 0.1, "depth": 1}, Verify()),
        ({"reply_ms": 17.0, "home_passes_per_token": 0.1}, DraftAtHome(1)),  # nothing is here
        ({"reply_ms": 60.0, "home_passes_per_token": 0.1}, DraftAtHome(1)),
        ({"reply_ms": 60.0, "home_passes_per_token": 0.9}, DraftAtHome(1)),
        ({**RUNNING, "reply_ms": 60.0, "home_passes_per_token": 0.9}, Verify()),
        ({**RUNNING, "reply_ms": 80.0, "home_passes_per_token": 0.3}, DraftAtHome(1)),
        ({**RUNNING, "reply_ms": 80.0, "home_passes_per_token": 0.4}, Verify()),
        # One farther away than that leaves home as if it were alone, in turn with the target.
        ({"reply_ms": 90.0, "home_passes_per_token": 2.0}, DraftAtHome(1)),
        ({**RUNNING, "reply_ms": 90.0}, Verify()),
        ({**RUNNING, "left_ms": 1.0}, Verify()),
        ({**RUNNING, "arrivals": NOTHING_HERE_SOON}, Verify()),  # a remote sees to it
        # One that has brought too little, or while the request is behind, is not counted on.
        # One of little worth is as good as not there: home works ahead.
        ({**RUNNING, "reply_ms": 60.0, "remote_worth": 0.5, "behind_ms": -1e3}, DraftAtHome(1)),
        ({"reply_ms": 17.0, "home_passes_per_token": 0.1, "depth": 1, **WORTHLESS}, DraftAtHome(1)),
        ({"reply_ms": 17.0, "home_passes_per_token": 0.1, "depth": 1, **BEHIND}, DraftAtHome(1)),
        ({"home_passes": None, "arrivals": NOTHING_HERE_SOON, **BEHIND}, Verify()),
        # The less it is worth, the further ahead the request has to be.
        ({"home_passes": None, "arrivals": NOTHING_HERE_SOON, **HALF, "behind_ms": -9.0}, Verify()),
        (
            {"home_passes": None, "arrivals": NOTHING_HERE_SOON, **HALF, "behind_ms": -16.0},
            Wait(1002.0),
        ),
        # Nobody is waited for by the hour, whatever the clock says a pass takes.
        (
            {
                "home_passes": None,
                "target_pass_ms": 3.6e6,
                "tokens_per_ms": 1e-6,
                "arrivals": (Arrival(2001.0, 4.0, 1.0),),
            },
            Verify(),
        ),
    ],
)
def test_expected_gain(changes, expected):
    policy = ExpectedGain(pass_price=0.2, ahead_price=0.3, more_ahead_price=0.45)
    assert policy.decide(replace(VIEW, **changes)) == expected


def test_dearer_passes_are_fewer():
    def passes(price):
        view, done = replace(VIEW, reply_ms=20.0), 0
        policy = ExpectedGain(pass_price=price, near_passes=0.0, far_passes=1.0)
        while isinstance(policy.decide(view), DraftAtHome):
            done += 1
            mass = view.open_mass * view.coverage
            view = replace(view, open_mass=mass, depth=done, home_passes=done, idle_ms=3.0 * done)
        return done

    counts = [passes(price) for price in (0.0, 0.2, 0.4, 0.8)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > 0 == counts[3]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, DraftAtHome(1)),
        ({"home_passes": 5}, Verify()),
        ({"home_passes": None}, Verify()),
        ({"depth": 16}, Verify()),
        (RUNNING, Verify()),
        ({"arrivals": NOTHING_HERE_SOON, **DEEP}, DraftAtHome(1)),
    ],
)
def test_always_local(changes, expected):
    assert AlwaysLocal(5).decide(replace(VIEW, **changes)) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Verify()),
        ({"arrivals": NOTHING_HERE_SOON}, Wait(1002.0)),
        ({"arrivals": NOTHING_HERE_SOON, "depth": 1}, Verify()),
        ({"arrivals": NOTHING_HERE_SOON, "waited_ms": 14.0}, Verify()),
    ],
)
def test_never_local(changes, expected):
    assert NeverLocal(0.5).decide(replace(VIEW, **changes)) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, DraftAtHome(1)),
        ({"depth": 3, "entropy_bits": 2.5}, DraftAtHome(1)),
        ({"depth": 3, "entropy_bits": 1.5}, Verify()),
        ({"depth": 3, "entropy_bits": 1.5, "arrivals": NOTHING_HERE_SOON}, Wait(1002.0)),
        ({"depth": 4, "entropy_bits": 1.5, "arrivals": NOTHING_HERE_SOON}, Verify()),
        ({"depth": 5, "home_depth": 5, "entropy_bits": 2.5}, Verify()),
        ({"home_passes": 5}, Verify()),
    ],
)
def test_entropy_gate(changes, expected):
    assert EntropyGate(2.0).decide(replace(VIEW, **changes)) == expected


views = st.builds(
    View,
    now_ms=st.floats(0, 1e9),
    idle_ms=st.floats(0, 1e4),
    waited_ms=st.floats(0, 100),
    verifying=st.just(False),
    left_ms=st.just(0.0),
    expected_tokens=st.floats(1, 20),
    open_mass=st.floats(0, 1),
    entropy_bits=st.floats(0, 10),
    depth=st.integers(0, 40),
    home_depth=st.integers(0, 40),
    max_depth=st.integers(0, 32),
    coverage=st.floats(0, 1),
    target_pass_ms=st.floats(0.01, 1e4),
    home_pass_ms=st.floats(0.001, 1e4),
    tokens_per_ms=st.floats(1e-6, 1e3),
    home_passes=st.none() | st.integers(0, 8),
    home_is_busy=st.booleans(),
    arrivals=st.lists(
        st.builds(Arrival, st.floats(0, 1e9), st.floats(0.1, 100), st.floats(0, 1)), max_size=3
    ).map(tuple),
)
policies = st.sampled_from([ExpectedGain(), EntropyGate(), NeverLocal(), AlwaysLocal()])


@settings(derandomize=True, database=None, deadline=None)
@given(views, policies)
def test_a_wait_is_never_past_its_bound(view, policy):
    decision = policy.decide(view)
    if isinstance(decision, Wait):
        waited = view.waited_ms + decision.until_ms - view.now_ms
        assert waited <= policy.max_wait_fraction * view.target_pass_ms * (1 + 1e-6) + 1e-6
        assert decision.until_ms > view.now_ms
    if isinstance(decision, DraftAtHome):
        assert view.home_passes is not None


@settings(derandomize=True, database=None, deadline=None)
@given(views, policies, st.lists(st.floats(0.0, 50.0), min_size=300, max_size=300))
def test_every_round_ends_in_a_pass(view, policy, expected_in):
    """Whatever sources promise anew each time, and if the home drafter brings nothing at all."""
    # At 0.1 ms a wait, the shortest, a round has room for 250 of them and 8 home passes.
    view = replace(view, target_pass_ms=min(view.target_pass_ms, 50.0), waited_ms=0.0)
    for ahead in expected_in:
        view = replace(view, arrivals=(Arrival(view.now_ms + ahead, 4.0, 1.0),))
        match policy.decide(view):
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
    pytest.fail("a round of 300 decisions without a target pass")


def test_estimates_learn_and_return_to_their_prior():
    estimates = Estimates()
    assert (estimates.target_pass_ms, estimates.home_pass_ms) == (30.0, 3.75)
    for _ in range(100):
        estimates.observe_pass(20.0, 8, 0)
        estimates.observe_round(1, 20.0, 0, 1)
    assert estimates.acceptance < 0.2
    assert estimates.coverage < 0.3
    assert estimates.tokens_per_ms == pytest.approx(0.05, rel=0.3)
    for _ in range(400):
        estimates.observe_pass(20.0, 0, 0)
        estimates.observe_round(0, 0.0, 0, 0)
    assert estimates.acceptance == pytest.approx(0.7, abs=0.01)
    assert estimates.coverage == pytest.approx(0.85, abs=0.01)
    estimates.observe_pass(5000.0, 0, 0)  # one slow pass is no trend
    assert estimates.target_pass_ms == 20.0
    estimates.observe_home(5000.0, 2)  # warming up
    estimates.observe_home(8.0, 2)
    assert estimates.home_pass_ms == 4.0


def test_a_pause_is_no_pass_time():
    """The first pass of all may have been one: a clock jumped, or kernels were compiled."""
    estimates = Estimates()
    for ms in (3.6e6, 30.0, 31.0, 1500.0, 30.0):
        estimates.observe_pass(ms, 4, 2)
    assert estimates.target_pass_ms <= 31.0


def test_a_home_draft_that_reads_text_first_is_no_measure_once_others_are_known():
    estimates = Estimates()
    estimates.observe_home(99.0, 1)  # warming up
    estimates.observe_home(24.0, 1, reads=True)
    assert estimates.home_pass_ms == 12.0
    estimates.observe_home(20.0, 2)
    estimates.observe_home(30.0, 1, reads=True)
    assert estimates.home_pass_ms == 10.0


def test_remotes_are_worth_what_they_bring_in_the_end_and_level_at_first():
    estimates = Estimates()
    assert estimates.remote_worth == pytest.approx(1.0)
    for _ in range(100):
        estimates.observe_served(1, 30.0, 6, 45.0)
    assert estimates.remote_worth == pytest.approx((1 / 30.0) / (6 / 45.0), rel=0.15)
    for _ in range(100):
        estimates.observe_served(6, 30.0, 6, 45.0)
    assert estimates.remote_worth == pytest.approx(1.5, rel=0.1)


def test_what_home_holds_where_remotes_were_wrong():
    estimates = Estimates()
    assert estimates.home_rescue == pytest.approx(0.5)
    estimates.observe_missed([True] * 40)
    assert estimates.home_rescue > 0.9


def test_a_home_drafter_found_slow_is_tried_again_at_a_bounded_cost():
    """Its two passes took minutes, or a clock jumped in both: it costs what it is waited for."""
    estimates = Estimates()
    estimates.observe_pass(20.0, 4, 2)
    estimates.observe_home(900e3, 1)
    estimates.observe_home(400e3, 1)
    slow_ms = estimates.home_pass_ms
    assert slow_ms == estimates.home_patience_ms == 40.0
    for times_as_long in (5, 10, 20, 40, 50, 50):  # at first it may have been warming up
        passes = 0
        while estimates.home_pass_ms == slow_ms:
            estimates.observe_pass(20.0, 4, 2)
            passes += 1
        assert passes == times_as_long * slow_ms / 20.0 + 1
        estimates.observe_home(900e3, 1)


def test_home_drafts_that_are_no_measure_do_not_put_off_another_try():
    """Those that read text first, while the target runs: one late draft was the last one."""
    estimates = Estimates()
    for _ in range(6):
        estimates.observe_pass(30.0, 4, 2)
        estimates.observe_home(3.0, 1)
    while estimates.home_ms:  # a remote serves, and home rests
        estimates.observe_pass(30.0, 4, 4)
    estimates.observe_home(6.0, 1, reads=True)
    estimates.observe_home(60.0, 1)
    assert estimates.home_pass_ms == 60.0
    for _ in range(100):
        estimates.observe_home(6.0, 1, reads=True)
        estimates.observe_pass(30.0, 4, 2)
    assert estimates.home_pass_ms < 4.0
