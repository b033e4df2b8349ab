"""Every wait ends, whatever policies, drafters and wakes do, and the text is the target's own."""

from itertools import cycle
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.fake_models import VOCAB_SIZE, continuation
from tests.serving.test_generation import PROMPT, TARGET_MS, World
from wanspec_kernels.control.home_work import MAX_PASSES
from wanspec_kernels.control.policy import MAX_WAIT_MS, DraftAtHome, Verify, Wait
from wanspec_kernels.control.waits import Waits
from wanspec_kernels.engine.actions import StartPass
from wanspec_kernels.engine.generation import Generation
from wanspec_kernels.engine.request import Request

TOKENS = 15
# A policy that asks home for all at once waits for all of it.
LONGEST_HOME_MS = MAX_PASSES * 2 * TARGET_MS


class Recited:
    """A policy whose answers are these, in turn, whatever it sees."""

    def __init__(self, answers):
        self._answers = cycle(answers)

    def decide(self, view):
        match next(self._answers):
            case ("wait", ms):
                return Wait(view.now_ms + ms)
            case ("home", passes):
                return DraftAtHome(passes)
        return Verify()


ANSWERS = st.one_of(
    st.just(("verify",)),
    st.tuples(st.just("wait"), st.sampled_from([nan, inf, -inf, -5.0, 0.0, 1e-9, 1e12])),
    st.tuples(st.just("wait"), st.floats(0.0, 100.0)),
    st.tuples(st.just("home"), st.sampled_from([-3, 0, 10**9])),
    st.tuples(st.just("home"), st.integers(1, 9)),
)
KINDS = ("any", "silent", "leaves", "lies")


class Restless(World):
    """Has drafters of the kinds named, and wakes the verifier for nothing at the times given."""

    def __init__(self, seed, answers, kinds, wakes_ms, home_pauses):
        super().__init__(
            seed,
            policy=Recited(answers),
            num_drafters=len(kinds),
            home_pauses=home_pauses,
            tokens=TOKENS,
        )
        self.passing = False
        for wake_ms in wakes_ms:
            self.at(wake_ms, self.tick)
        for drafter, kind in zip(self.drafters, kinds, strict=True):
            match kind:
                case "silent":
                    drafter.stalls_at_ms = -inf
                case "leaves":
                    drafter.stalls_at_ms = self.rng.uniform(0.0, 500.0)
                    self.at(drafter.stalls_at_ms, self.generation.retire, drafter.source)
                case "lies":
                    drafter.malice = 1

    def act(self, actions):
        self.passing |= any(isinstance(action, StartPass) for action in actions)
        super().act(actions)
        wake_at_ms = self.generation.wake_at_ms
        if self.generation.done:
            assert wake_at_ms is None
        elif not self.passing:
            assert wake_at_ms is not None
            idle_ms = wake_at_ms - self.last_pass_ms
            assert idle_ms <= MAX_WAIT_MS + LONGEST_HOME_MS + 1e-6

    def pass_ends(self, tree):
        self.passing = False
        super().pass_ends(tree)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    answers=st.lists(ANSWERS, min_size=1, max_size=6),
    kinds=st.lists(st.sampled_from(KINDS), max_size=3),
    wakes_ms=st.lists(st.floats(0.0, 3000.0), max_size=30),
    home_pauses=st.sampled_from([0.0, 0.2]),
)
def test_every_wait_ends_whatever_the_policy_answers(seed, answers, kinds, wakes_ms, home_pauses):
    world = Restless(seed, answers, kinds, wakes_ms, home_pauses).run()
    s = world.generation.statistics
    assert world.text == continuation(PROMPT, TOKENS)
    assert world.longest_round_ms <= MAX_WAIT_MS + LONGEST_HOME_MS + 1e-6
    assert s.waited_ms <= MAX_WAIT_MS * s.target_passes + 1e-6
    if not world.home:
        assert s.local_draft_passes == s.home_failures == 0


def request(policy, **options):
    generation = Generation(Request(PROMPT, 9), vocab_size=VOCAB_SIZE, policy=policy, **options)
    return generation, generation.start(0.0)


def test_a_wait_goes_on_after_an_early_wake_and_counts_once():
    class Once:
        def decide(self, view):
            seen.append(view.waited_ms)
            return Wait(view.now_ms + 50.0) if view.waited_ms < 50.0 else Verify()

    seen = []
    generation, actions = request(Once())
    assert actions == []
    for now in (0.0, 10.0, 49.999):
        assert generation.tick(now) == []
        assert generation.wake_at_ms == 50.0
    (start,) = generation.tick(50.0)
    assert isinstance(start, StartPass)
    assert generation.wake_at_ms is None
    assert generation.tick(1e9) == []
    assert seen[:2] == [0.0, 50.0]
    assert generation.statistics.waited_ms == 50.0


@pytest.mark.parametrize("ms", [nan, -inf, -1.0, 0.0, 1e-9])
def test_a_wait_of_no_time_is_none(ms):
    _, (start,) = request(Recited([("wait", ms)]))
    assert isinstance(start, StartPass)


def test_the_waits_of_a_round_share_one_bound():
    generation, actions = request(Recited([("wait", inf), ("wait", 400.0)]))
    assert actions == []
    assert generation.wake_at_ms == MAX_WAIT_MS
    (start,) = generation.tick(MAX_WAIT_MS)  # and no time is left for another
    assert isinstance(start, StartPass)

    waits = Waits()
    assert waits.begin(700.0, 0.0)
    assert waits.end(600.0) == 600.0
    assert waits.end(650.0) == 0.0
    assert waits.begin(inf, 700.0)
    assert waits.until_ms == 700.0 + MAX_WAIT_MS - 600.0
    waits.end(waits.until_ms)
    waits.committed()
    assert waits.begin(inf, 2000.0)
    assert waits.until_ms == 2000.0 + MAX_WAIT_MS


def test_home_is_awaited_once_however_often_it_is_asked_for():
    generation, _ = request(Recited([("home", 1)]), home=True)
    (start,) = generation.tick(generation.wake_at_ms)
    assert isinstance(start, StartPass)
    assert generation.wake_at_ms is None


def test_a_rounds_home_passes_are_bounded_and_none_are_asked_of_nobody():
    generation, (asked,) = request(Recited([("home", 10**9)]), home=True)
    assert asked.passes == MAX_PASSES
    assert generation.wake_at_ms == MAX_PASSES * generation.estimates.home_patience_ms
    _, (start,) = request(Recited([("home", 1)]))
    assert isinstance(start, StartPass)
