import pytest

from tests.drafts.test_verifier_session import commit, deliver, greeted, running
from wanspec_kernels.drafts.usefulness import PASSES_JUDGED, Usefulness
from wanspec_kernels.wire import Commit, Open

MOST = 2048


def judged(*brought_by, passes=PASSES_JUDGED, of=None):
    usefulness = of or Usefulness()
    for source in (1, 2):
        usefulness.enrol(source)
    for _ in range(passes):
        usefulness.observe(brought_by)
    return usefulness


@pytest.mark.parametrize(
    ("brought_by", "small"),
    [
        ((1, 1), [2]),  # the other's double, or worse
        ((1, 2), []),
        ((None, 0), []),  # the target's own and home's say nothing of remotes
        ((), []),
    ],
)
def test_who_brings_nothing_is_asked_for_less(brought_by, small):
    usefulness = judged(*brought_by)
    asked = {source: usefulness.max_nodes(source, MOST) for source in (1, 2)}
    assert asked == {s: MOST // 8 if s in small else MOST for s in (1, 2)}


def test_nobody_is_judged_early():
    usefulness = judged(1, 1, passes=PASSES_JUDGED - 1)
    assert usefulness.max_nodes(2, MOST) == MOST
    assert usefulness.max_nodes(3, MOST) == MOST  # nor who is not known


@pytest.mark.parametrize("share", [1, 30])
def test_who_becomes_useful_is_asked_for_all_again(share):
    """Who brings one in ten; one in thirty is not enough, though it was enough not to be judged."""
    usefulness = judged(1, 1)
    for number in range(4 * PASSES_JUDGED):
        usefulness.observe([1] * 2 if number % share else [2])
    assert usefulness.max_nodes(2, MOST) == (MOST if share == 1 else MOST // 8)


def test_when_another_leaves_or_brings_no_more_all_is_asked_for_again():
    usefulness = judged(1, 1)
    usefulness.retire(1)
    assert usefulness.max_nodes(2, MOST) == MOST
    usefulness = judged(passes=3 * PASSES_JUDGED, of=judged(1, 1))
    assert usefulness.max_nodes(2, MOST) == MOST


def test_the_drafter_is_opened_anew_and_kept_up_to_date_until_then():
    session, generation = greeted(), running()
    generation.enrol(session.source)
    deliver(session, generation, 0.0)
    for _ in range(PASSES_JUDGED):
        generation.estimates.sources.usefulness.enrol(7)
        generation.estimates.sources.usefulness.observe([7])
    commit(generation, [4])
    (message,) = deliver(session, generation, 10.0)  # OPENs follow each other slowly
    assert isinstance(message, Commit)
    commit(generation, [5])
    (message,) = deliver(session, generation, 300.0)
    assert isinstance(message, Open)
    assert (message.max_nodes, len(message.token_ids)) == (8, 5)
    commit(generation, [6])
    (message,) = deliver(session, generation, 310.0)
    assert isinstance(message, Commit)
