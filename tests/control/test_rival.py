"""The rival's clock: rounds that can be reckoned by hand, and what may never happen to it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanspec_kernels.control.rival import ROUNDS, Rival

TARGET_MS, HOME_MS = 30.0, 3.0
shares = st.lists(st.sampled_from([0.0, 0.05, 0.3, 1.0]), max_size=80)


def took(held, target_ms=TARGET_MS, home_ms=HOME_MS):
    return Rival().follow(held, target_ms, home_ms)


def test_where_no_draft_is_right_it_is_plain_decoding():
    assert took([0.0] * 50) == pytest.approx(50 * TARGET_MS)


def test_a_home_too_slow_to_help_leaves_plain_decoding():
    assert took([1.0] * 50, home_ms=400.0) == pytest.approx(50 * TARGET_MS)


def test_where_all_are_right_it_takes_the_longest_rounds():
    assert took([1.0] * 21 * 10) == pytest.approx(10 * (TARGET_MS + 20 * HOME_MS))


def test_dear_passes_at_home_make_rounds_short():
    passes = min(ROUNDS, key=lambda k: (TARGET_MS + 25.0 * k) / (k + 1))
    tokens = 2 * 3 * 7 * 11 * 13 * 17  # whole rounds of any length
    expected = tokens / (passes + 1) * (TARGET_MS + 25.0 * passes)
    assert took([1.0] * tokens, home_ms=25.0) == pytest.approx(expected)


def test_a_miss_every_sixth_token_ends_rounds_of_five():
    assert took([1.0, 1.0, 1.0, 1.0, 1.0, 0.0] * 40) == pytest.approx(
        40 * (TARGET_MS + 5 * HOME_MS)
    )


@settings(derandomize=True, database=None, deadline=None)
@given(shares, st.integers(0, 80))
def test_it_never_goes_back_and_does_not_mind_how_tokens_come(held, cut):
    rival = Rival()
    parts = [rival.follow(part, TARGET_MS, HOME_MS) for part in (held[:cut], held[cut:])]
    assert min(parts) >= 0.0
    assert sum(parts) == pytest.approx(took(held))


@settings(derandomize=True, database=None, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=80), st.data())
def test_an_unlikely_branch_is_never_quicker(held, data):
    at = data.draw(st.integers(0, len(held) - 1))
    detour = [0.05 * share if i == at else share for i, share in enumerate(held)]
    longest = TARGET_MS + ROUNDS[-1] * HOME_MS  # of the round under way, charged by its tokens
    assert took(detour) >= took(held) - longest


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.85, 1.0])
def test_drafts_never_made_hold_a_token_as_often_as_they_would(probability):
    rival = Rival()
    held = sum(rival.holds(probability) for _ in range(1000))
    assert held == pytest.approx(1000 * probability, abs=1.0)
