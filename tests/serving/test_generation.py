"""One request in virtual time, with drafters that lose, repeat, reorder and lie."""

from dataclasses import replace
from heapq import heappop, heappush
from itertools import count
from random import Random

import pytest

from tests.serving.fake_models import VOCAB_SIZE, FakeTarget, continuation, guess
from wanspec_kernels.control.policies import ExpectedGain
from wanspec_kernels.control.row_budget import RowBudget
from wanspec_kernels.drafts.pool import HOME, Kind
from wanspec_kernels.engine.actions import Committed, DraftAtHome, Finished, StartPass
from wanspec_kernels.engine.generation import Generation
from wanspec_kernels.engine.request import Limits, Request
from wanspec_kernels.tree import DraftTree
from wanspec_kernels.wire import Draft, Expansion
from wanspec_kernels.wire.sampling import Sampling

PROMPT = (3, 1, 4, 1, 5)
TOKENS = 60
TARGET_MS = 30.0
HOME_MS = 4.0
LONGEST_ROUND_MS = ExpectedGain().max_home_passes * HOME_MS + 0.4 * TARGET_MS


class Drafter:
    """A remote: sends below the newest text it knows, over a link that misbehaves."""

    def __init__(self, rng, source):
        self.source = source
        self.known = PROMPT
        self.one_way_ms = rng.choice([1, 10, 30, 100])
        self.jitter_ms = rng.choice([0, 5, 60])
        self.loss = rng.choice([0, 0, 0.3, 0.9])
        self.repeat = rng.choice([0, 0, 0.5])
        self.step_ms = rng.choice([3, 7, 40])
        self.skill = rng.choice([0, 0.6, 0.9, 1])
        self.malice = rng.choice([0, 0, 0, 0.2, 1])
        self.stalls_at_ms = rng.choice([1e9, 1e9, 200])

    def draft(self, rng):
        back = rng.choice([0, 0, 0, 3])
        base = max(len(PROMPT), len(self.known) - back)
        honest = guess(rng, self.known, self.skill, rng.randint(1, 6), base_length=base)
        if rng.random() >= self.malice:
            return honest
        match rng.randrange(6):
            case 0:
                return replace(honest, base_check=honest.base_check ^ 1)
            case 1:
                return replace(honest, base_length=honest.base_length + rng.randint(1, 9))
            case 2:
                return Draft(1, base, honest.base_check, (VOCAB_SIZE + 5,), (-1,))
            case 3:
                return replace(honest, request=99)
            case 4:
                junk = tuple(range(VOCAB_SIZE))
                return Draft(1, base, honest.base_check, junk, (-1,) * len(junk))
            case _:
                draws = Expansion(-1, (0,), honest.token_ids[:1], (1,))
                return replace(honest, expansions=(draws,))


class World:
    """Virtual time: a heap of events, a generation, a target, drafters."""

    def __init__(self, seed, *, policy=None, num_drafters=None, home_pauses=0.0, tokens=TOKENS):
        rng = self.rng = Random(seed)
        self.home = rng.random() < 0.6
        self.home_fails = True
        self.home_pauses = home_pauses
        self.generation = Generation(
            Request(PROMPT, tokens),
            vocab_size=VOCAB_SIZE,
            policy=policy,
            limits=Limits(max_rows=rng.choice([1, 8, 64]), max_source_nodes=rng.choice([16, 1024])),
            rows=rng.choice([None, RowBudget(32)]),
            home=self.home,
        )
        self.target = FakeTarget()
        self.target.start(1, PROMPT)
        n = rng.randint(0, 3) if num_drafters is None else num_drafters
        self.drafters = [Drafter(rng, source) for source in range(1, n + 1)]
        self.now = 0.0
        self.events = []
        self.ticket = count()
        self.text, self.flags = [], []
        self.waits_ended = 0
        self.longest_round_ms = self.last_pass_ms = 0.0
        self.finished = None

    def at(self, delay_ms, call, *args):
        heappush(self.events, (self.now + delay_ms, next(self.ticket), call, args))

    def run(self):
        for drafter in self.drafters:
            self.generation.enrol(drafter.source, 2.0 * drafter.one_way_ms)
            self.at(drafter.one_way_ms, self.drafter_step, drafter)
        self.act(self.generation.start(self.now))
        while self.finished is None:
            wake_at_ms = self.generation.wake_at_ms
            if wake_at_ms is not None and (not self.events or wake_at_ms < self.events[0][0]):
                self.waits_ended += 1
                self.now = wake_at_ms
                self.tick()
                wake_at_ms = self.generation.wake_at_ms
                assert wake_at_ms is None or wake_at_ms > self.now, "a wait goes on past its end"
                continue
            assert self.events, "stuck: nothing will ever happen again"
            self.now, _, call, args = heappop(self.events)
            call(*args)
            assert self.now < 1e6
        return self

    def act(self, actions):
        for action in actions:
            match action:
                case StartPass(tree):
                    DraftTree.build([(tree.token_ids, tree.parents)])
                    self.longest_round_ms = max(self.longest_round_ms, self.now - self.last_pass_ms)
                    self.at(TARGET_MS, self.pass_ends, tree)
                case DraftAtHome(token_ids, passes, _):
                    assert self.home
                    paused = self.home_pauses and self.rng.random() < self.home_pauses
                    pause_ms = self.rng.choice([100.0, 1000.0, 1e5]) if paused else 0.0
                    self.at(passes * HOME_MS + pause_ms, self.home_ends, token_ids, passes)
                case Committed(token_ids, sources):
                    self.text += token_ids
                    self.flags += sources
                    for drafter in self.drafters:
                        if self.rng.random() >= drafter.loss:
                            known = tuple(self.generation.token_ids)
                            self.at(drafter.one_way_ms, self.drafter_hears, drafter, known)
                case Finished(reason):
                    self.finished = reason

    def pass_ends(self, tree):
        self.last_pass_ms = self.now
        self.act(self.generation.pass_finished(*self.target.verify(1, tree), self.now))

    def home_ends(self, token_ids, passes):
        draft = guess(self.rng, token_ids, 0.8, passes)
        answer = None if self.home_fails and self.rng.random() < 1 / 3 else [draft]
        self.act(self.generation.home_finished(answer, self.now))

    def tick(self):
        self.act(self.generation.tick(self.now))

    def drafter_hears(self, drafter, known):
        drafter.known = max(drafter.known, known, key=len)

    def drafter_step(self, drafter):
        rng = self.rng
        if self.now >= drafter.stalls_at_ms:
            return
        draft = drafter.draft(rng)
        for _ in range(1 + (rng.random() < drafter.repeat)):
            if rng.random() >= drafter.loss:
                delay_ms = drafter.one_way_ms + rng.random() * drafter.jitter_ms
                self.at(delay_ms, self.offer, drafter.source, draft)
        self.at(drafter.step_ms, self.drafter_step, drafter)

    def offer(self, source, draft):
        self.generation.offer(source, draft, self.now)
        self.act(self.generation.tick(self.now))


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_any_schedule_commits_the_targets_own_text(first):
    expected = continuation(PROMPT, TOKENS)
    for seed in range(first, first + 50):
        world = World(seed).run()
        s = world.generation.statistics
        assert world.text == world.generation.output_ids == expected, seed
        assert world.finished == "length"
        assert world.flags == world.generation.output_sources
        # A round: so many home passes at most and two fifths of a target pass of waiting.
        assert world.longest_round_ms <= LONGEST_ROUND_MS + 1e-6
        assert s.waited_ms <= 0.4 * TARGET_MS * s.target_passes + 1e-6
        assert s.tokens == TOKENS
        assert s.tokens == sum(f is None for f in world.flags) + (
            s.home_tokens_accepted + s.remote_tokens_accepted
        )
        assert s.target_passes <= TOKENS


def test_a_home_drafter_that_pauses_holds_up_a_round_for_two_passes():
    expected = continuation(PROMPT, TOKENS)
    for seed in range(100):
        world = World(seed, home_pauses=0.2).run()
        assert world.text == expected, seed
        assert world.longest_round_ms <= LONGEST_ROUND_MS + 2 * TARGET_MS + 1e-6, seed


def test_a_policy_that_waits_too_long_would_be_seen():
    worlds = (World(seed, policy=ExpectedGain(max_wait_fraction=4.0)) for seed in range(50))
    assert any(w.run().longest_round_ms > LONGEST_ROUND_MS for w in worlds)


def test_the_schedules_reach_every_outcome():
    kinds = set()
    waits = 0
    for seed in range(60):
        world = World(seed).run()
        kinds |= world.generation.statistics.outcomes.keys()
        waits += world.waits_ended
    assert kinds == set(Kind)
    assert waits > 0


def test_a_good_drafter_nearby_saves_passes_and_home_passes():
    def run(num_drafters):
        world = World(7, num_drafters=num_drafters)
        world.home, world.home_fails = True, False
        world.generation = Generation(Request(PROMPT, TOKENS), vocab_size=VOCAB_SIZE, home=True)
        for drafter in world.drafters:
            drafter.__dict__.update(
                one_way_ms=5, jitter_ms=0, loss=0, step_ms=3, skill=1, malice=0, stalls_at_ms=1e9
            )
        return world.run().generation.statistics

    alone, helped = run(0), run(1)
    assert alone.target_passes < 0.6 * TOKENS
    assert helped.target_passes < alone.target_passes
    assert helped.local_draft_passes < alone.local_draft_passes / 2
    assert helped.remote_tokens_accepted > helped.home_tokens_accepted


def finished_by(request):
    """Run without drafters; the output and the last action."""
    target = FakeTarget()
    target.start(1, request.token_ids)
    generation = Generation(request, vocab_size=VOCAB_SIZE)
    actions = generation.start(0.0)
    while isinstance(actions[-1], StartPass):
        actions = generation.pass_finished(*target.verify(1, actions[-1].tree), 0.0)
    return generation, actions[-1]


def test_a_stop_token_ends_the_text_with_it():
    expected = continuation(PROMPT, 30)
    stop = expected[9]
    generation, last = finished_by(Request(PROMPT, 30, stop_token_ids=frozenset([stop])))
    assert last == Finished("stop")
    assert generation.output_ids == expected[: expected.index(stop) + 1]


def test_tokens_past_max_tokens_are_not_committed():
    generation = Generation(Request(PROMPT, 2), vocab_size=VOCAB_SIZE)
    generation.enrol(1)
    generation.start(0.0)
    generation.pass_finished([9], [], 1.0)
    generation.offer(1, guess(Random(0), (*PROMPT, 9), 1, 5), 1.0)
    # One token is left to say: no draft can be of use, and a second token would be one too many.
    actions = generation.pass_finished([8], [], 2.0)
    assert actions == [Committed((8,), (None,)), Finished("length")]
    assert generation.output_ids == [9, 8]


def test_a_draft_in_mid_pass_counts_and_flags_who_drafted():
    generation = Generation(Request(PROMPT, 20), vocab_size=VOCAB_SIZE)
    for source in (1, 2):
        generation.enrol(source)
    generation.start(0.0)
    text = [*PROMPT, *continuation(PROMPT, 5)]
    parents = tuple(range(-1, 4))
    draft = guess(Random(0), PROMPT, 1, 5, branches=0)
    assert draft.parents == parents
    generation.offer(2, draft, 1.0)
    committed, start = generation.pass_finished(text[len(PROMPT) : len(PROMPT) + 1], [], 30.0)
    assert committed == Committed((text[len(PROMPT)],), (None,))
    assert isinstance(start, StartPass)
    assert start.tree.token_ids == tuple(text[len(PROMPT) :])
    verdict = ([*text[len(PROMPT) + 1 : len(PROMPT) + 3], 0], [1, 2])
    committed = generation.pass_finished(*verdict, 60.0)[0]
    assert committed.sources == (2, 2, None)


@pytest.mark.parametrize(
    ("tokens", "nodes"), [([4], [1]), ([4, 5], []), ([9, 5], [1]), ([4, 5], [0]), ([4, 5], [7])]
)
def test_a_verdict_that_is_no_path_is_refused(tokens, nodes):
    generation = Generation(Request(PROMPT, 20), vocab_size=VOCAB_SIZE, home=True)
    actions = generation.start(0.0)
    draft = guess(Random(0), PROMPT, 1, 5, branches=0)
    while not isinstance(actions[0], StartPass):
        actions = generation.home_finished([draft], 1.0)
    with pytest.raises(ValueError, match="verdict: expected"):
        generation.pass_finished(tokens, nodes, 2.0)


def test_events_out_of_phase_are_refused():
    generation = Generation(Request(PROMPT, 20), vocab_size=VOCAB_SIZE)
    with pytest.raises(RuntimeError, match="phase: expected pass, got new"):
        generation.pass_finished([1], [], 0.0)
    generation.start(0.0)
    with pytest.raises(RuntimeError, match="home: expected an answer only to a DraftAtHome"):
        generation.home_finished(None, 0.0)


def test_the_targets_positions_bound_trees_and_text():
    limits = Limits(max_length=len(PROMPT) + 4)
    generation = Generation(Request(PROMPT, 20), vocab_size=VOCAB_SIZE, limits=limits)
    generation.enrol(1)
    target = FakeTarget()
    target.start(1, PROMPT)
    actions = generation.start(0.0)
    while isinstance(actions[-1], StartPass):
        rows = len(actions[-1].tree.token_ids)
        assert generation.pool.length - 1 + rows <= limits.max_length
        generation.offer(1, guess(Random(0), PROMPT, 1, 9, branches=3), 0.0)
        actions = generation.pass_finished(*target.verify(1, actions[-1].tree), 0.0)
    assert actions[-1] == Finished("length")
    assert generation.output_ids == continuation(PROMPT, 5)
    with pytest.raises(ValueError, match="at most 4 tokens, got 5"):
        Generation(Request(PROMPT, 1), vocab_size=VOCAB_SIZE, limits=Limits(max_length=4))


@pytest.mark.parametrize(
    "fields",
    [{"token_ids": ()}, {"max_tokens": 0}, {"token_ids": (VOCAB_SIZE,)}],
)
def test_requests_out_of_range_are_refused(fields):
    values = {"token_ids": PROMPT, "max_tokens": 5} | fields
    with pytest.raises(ValueError, match="expected"):
        Generation(Request(**values), vocab_size=VOCAB_SIZE)


def test_open_shares_the_seed_only_where_it_may():
    def seed(home=False, **fields):
        request = Request(PROMPT, 5, Sampling(seed=77, **fields))
        return Generation(request, vocab_size=VOCAB_SIZE).open_message(64, home=home).seed

    assert seed() == 77
    assert seed(share_seed=False) is None
    assert seed(home=True, share_seed=False) == 77
    assert seed(rule="rejection") is None


def test_an_early_draft_that_proves_invalid_names_its_source():
    request = Request(PROMPT, 20, Sampling(rule="rejection", num_draws=1))
    generation = Generation(request, vocab_size=VOCAB_SIZE)
    generation.enrol(1)
    generation.start(0.0)
    text = (*PROMPT, 9)
    first = guess(Random(1), text, 1, 1, branches=0)
    for token in (1, 2):
        draws = Expansion(-1, (0,), (1, 2), (1, 1))
        draft = replace(first, token_ids=(token,), parents=(-1,), expansions=(draws,))
        assert generation.offer(1, draft, 0.0).kind is Kind.EARLY
    generation.pass_finished([9], [], 1.0)
    assert generation.offenders.keys() == {1}
    assert HOME not in generation.offenders


def test_a_home_drafter_that_adds_nothing_is_not_asked_again_this_round():
    generation = Generation(Request(PROMPT, 20), vocab_size=VOCAB_SIZE, home=True)
    actions = generation.start(0.0)
    assert isinstance(actions[0], DraftAtHome)
    assert isinstance(generation.home_finished([], 0.1)[0], StartPass)
    assert generation.statistics.local_draft_passes == 0
    assert not generation.estimates.home_ms  # 0.1 ms is not what a pass takes


def test_a_home_drafter_that_hangs_is_waited_for_once():
    """The text goes on without it, and its draft is taken when it comes after all."""
    generation = Generation(Request(PROMPT, 9), vocab_size=VOCAB_SIZE, home=True)
    target = FakeTarget()
    target.start(1, PROMPT)
    (asked,) = generation.start(0.0)
    assert isinstance(asked, DraftAtHome)
    now = generation.wake_at_ms
    assert now == 2 * generation.estimates.target_pass_ms
    assert generation.tick(now - 1.0) == []
    assert generation.wake_at_ms == now
    actions = generation.tick(now)
    for _ in range(4):
        assert isinstance(actions[-1], StartPass)
        now += 30.0
        actions = generation.pass_finished(*target.verify(1, actions[-1].tree), now)
    assert len(generation.output_ids) == 4
    generation.home_finished([guess(Random(0), PROMPT, 1, 9, branches=0)], now)
    assert generation.statistics.outcomes[Kind.LATE] == 1
    assert generation.pool.follow(continuation(PROMPT, 9)[4:])[0] == 5


def test_a_full_tree_is_verified_without_more_drafting():
    limits = Limits(max_rows=3)
    generation = Generation(Request(PROMPT, 20), vocab_size=VOCAB_SIZE, limits=limits, home=True)
    generation.start(0.0)
    siblings = Draft(1, len(PROMPT), generation.check, (1, 2, 3), (-1, -1, -1))
    assert isinstance(generation.home_finished([siblings], 8.0)[0], StartPass)
