"""Home's clock learns from passes that draft, and home is tried again after it was too slow."""

from itertools import pairwise

import pytest

from wanspec_kernels.control.home import DraftAtHome, Home, HomeJob
from wanspec_kernels.control.tuning import TUNING

TARGET_MS = 30.0
GUESS_MS = TUNING.first_home_share * TARGET_MS
NEWS = TUNING.most_news


class Clocked:
    """A home drafter, and the time."""

    def __init__(self) -> None:
        self.home, self.now = Home(), 0.0

    def drafts(self, lengths: dict[int, int], took_ms: float, unread: set[int] = frozenset()):
        jobs = tuple(HomeJob(request, (1,) * length, None) for request, length in lengths.items())
        self.home.begins(DraftAtHome(jobs), TARGET_MS, self.now)
        self.now += took_ms - 1.0
        self.home.ends(self.now, unread)
        self.now += 1.0
        self.home.settle(self.now)  # merging took a millisecond

    @property
    def pass_ms(self) -> float:
        return self.home.pass_ms(1, TARGET_MS, self.now)


def test_a_pass_that_reads_a_prompt_is_not_homes_pace():
    clocked = Clocked()
    clocked.drafts({1: 500}, 400.0)
    assert clocked.pass_ms == GUESS_MS
    for _ in range(3):
        clocked.drafts({1: 500 + NEWS}, 5.0)
    assert clocked.pass_ms == pytest.approx(5.0)
    clocked.drafts({1: 510 + NEWS, 2: 300}, 300.0)  # a request that is new beside it
    assert clocked.pass_ms <= 5.0  # and maybe forgotten, as home was idle for so long
    assert clocked.home.passes == 5


def test_a_prompt_read_in_several_passes():
    clocked = Clocked()
    clocked.drafts({1: 9000}, 400.0, unread={1})
    clocked.drafts({1: 9000}, 300.0)  # the rest of it
    assert clocked.pass_ms == GUESS_MS
    for _ in range(3):
        clocked.drafts({1: 9003}, 5.0)
    assert clocked.pass_ms == pytest.approx(5.0)


def test_a_text_that_home_has_lost_is_read_again():
    clocked = Clocked()
    clocked.drafts({1: 500}, 400.0)
    clocked.home.forget(1)
    clocked.drafts({1: 500}, 400.0)
    assert clocked.pass_ms == GUESS_MS


def test_a_home_that_was_slow_is_tried_again_later_and_later():
    clocked = Clocked()
    pauses = []
    for _ in range(4):
        for _ in range(3):
            clocked.drafts({1: 10}, 50.0)
        began_ms = clocked.now
        while clocked.pass_ms > GUESS_MS:
            clocked.now += 10.0
        pauses.append(clocked.now - began_ms)
    assert pauses[0] == pytest.approx(TUNING.first_home_retry * 50.0, abs=20.0)
    assert all(later > 1.5 * sooner for sooner, later in pairwise(pauses))
    assert pauses[-1] <= TUNING.home_retry * 50.0 + 20.0
