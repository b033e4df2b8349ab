import pytest

from wanspec_kernels.drafts.sources import Pace


def test_a_pace_follows_replies_and_takes_no_pause_for_a_pace():
    pace = Pace()
    for i in range(200):
        pace.replied(40.0 + (i % 2) * 10)
        pace.heard(6.0 * i, 6.0 * (i - 1), max_gap_ms=30.0)
    assert pace.reply_ms == pytest.approx(45.0, abs=3.0)
    assert pace.reply_deviation_ms == pytest.approx(5.0, abs=1.5)
    assert pace.every_ms == pytest.approx(6.0)
    pace.heard(6.0 * 199 + 900.0, 6.0 * 199, max_gap_ms=30.0)
    assert pace.every_ms == pytest.approx(6.0)
