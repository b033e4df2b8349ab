"""How much is simulated in a given time: within bounds, more of it with more time, as asked."""

import pytest

from wanspec_kernels.planning.effort import (
    MAX_SCREEN_TOKENS,
    MAX_SEEDS,
    MAX_TOKENS,
    MIN_SCREEN_TOKENS,
    MIN_SEEDS,
    MIN_TOKENS,
    SCREEN_SHARE,
    Effort,
)


@pytest.mark.parametrize(
    ("left_s", "cost_s", "expected"),
    [
        (30.0, 1.0, (MIN_TOKENS, MIN_SEEDS)),  # too little for anything else
        (-5.0, 0.01, (MIN_TOKENS, MIN_SEEDS)),  # the screen took all of it
        (30.0, 0.025, (300, 8)),  # 2400 tokens on two workers
        (30.0, 0.06, (125, 8)),
        (30.0, 0.1, (100, 6)),
        (30.0, 0.001, (MAX_TOKENS, MAX_SEEDS)),
    ],
)
def test_the_finalists_get_what_time_is_left(left_s, cost_s, expected):
    tokens, seeds = Effort(60.0, workers=2).finals(left_s, cost_s)
    assert (tokens, seeds) == expected
    if expected not in ((MIN_TOKENS, MIN_SEEDS), (MAX_TOKENS, MAX_SEEDS)):
        assert 0.8 * left_s <= tokens * seeds * cost_s / 2 <= left_s


def test_what_is_asked_for_is_what_is_done():
    assert Effort(60.0, tokens=700, seeds=5).finals(1.0, 1.0) == (700, 5)
    assert Effort(60.0, tokens=700).finals(70.0, 0.01) == (700, 10)
    assert Effort(60.0, seeds=40).finals(80.0, 0.01) == (200, 40)
    assert Effort(60.0, tokens=60).screen_tokens(1.0) == 30


@pytest.mark.parametrize("cost_s", [1e-6, 0.1, 0.3, 100.0])
def test_the_screen_takes_its_share_of_the_time(cost_s):
    tokens = Effort(60.0, workers=2).screen_tokens(cost_s)
    affordable = int(SCREEN_SHARE * 60.0 * 2 / cost_s)
    assert tokens == min(max(affordable, MIN_SCREEN_TOKENS), MAX_SCREEN_TOKENS)
