"""Home's clock learns from passes that draft, and home is tried again after it was too slow."""

from wanspec_kernels.control.home import FIRST_GUESS, MOST_NEWS, RETRY, DraftAtHome, Home, HomeJob

TARGET_MS = 30.0
GUESS_MS = FIRST_GUESS * TARGET_MS


def drafts(home: Home, lengths: dict[int, int], took_ms: float, unread: set[int] = frozenset()):
    jobs = tuple(HomeJob(request, (1,) * length, None) for request, length in lengths.items())
    home.begins(DraftAtHome(jobs), TARGET_MS, 0.0)
    home.ends(took_ms, unread)


def test_a_pass_that_reads_a_prompt_is_not_homes_pace():
    home = Home()
    drafts(home, {1: 500}, 400.0)
    assert home.pass_ms(1, TARGET_MS) == GUESS_MS
    drafts(home, {1: 500 + MOST_NEWS}, 5.0)
    assert home.pass_ms(1, TARGET_MS) == 5.0
    drafts(home, {1: 510 + MOST_NEWS, 2: 300}, 300.0)  # a request that is new beside it
    assert home.pass_ms(1, TARGET_MS) == 5.0
    assert home.passes == 3


def test_a_prompt_read_in_several_passes():
    home = Home()
    drafts(home, {1: 9000}, 400.0, unread={1})
    drafts(home, {1: 9000}, 300.0)  # the rest of it
    assert home.pass_ms(1, TARGET_MS) == GUESS_MS
    drafts(home, {1: 9003}, 5.0)
    assert home.pass_ms(1, TARGET_MS) == 5.0


def test_a_text_that_home_has_lost_is_read_again():
    home = Home()
    drafts(home, {1: 500}, 400.0)
    home.forget(1)
    drafts(home, {1: 500}, 400.0)
    assert home.pass_ms(1, TARGET_MS) == GUESS_MS


def test_a_home_that_was_slow_is_tried_again_later_and_later():
    home = Home()
    drafts(home, {1: 10}, 500.0)
    pauses = []
    for _ in range(3):
        passes = 0
        while home.pass_ms(1, TARGET_MS) > GUESS_MS:
            home.target_began()
            passes += 1
        pauses.append(passes)
        drafts(home, {1: 10}, 500.0)
    assert pauses == [RETRY, 2 * RETRY, 4 * RETRY]
    for _ in range(8 * RETRY):
        home.target_began()
    drafts(home, {1: 10}, 4.0)
    drafts(home, {1: 10}, 4.0)  # It is worth its time again.
    assert home.pass_ms(1, TARGET_MS) == 4.0
    for _ in range(RETRY):
        home.target_began()
    assert home.pass_ms(1, TARGET_MS) == GUESS_MS
