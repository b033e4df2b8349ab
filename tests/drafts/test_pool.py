import random
from collections import Counter
from dataclasses import replace

import pytest

from wanspec_kernels.drafts.pool import HOME, MAX_EARLY_DRAFTS, Kind, Pool, Selection
from wanspec_kernels.drafts.worth import MOST_TRUST, Worths
from wanspec_kernels.tree import DraftTree, Expansion
from wanspec_kernels.wire import Draft, check_of
from wanspec_kernels.wire.confidence import code_of

PROMPT = (1, 2, 3)


def make_pool(sources=(1, 2), **options):
    """Its sources have proved to be of use."""
    pool = Pool(7, PROMPT, vocab_size=100, **options)
    for source in sources:
        pool.enrol(source)
        pool.worths.of(source).trust = MOST_TRUST
    return pool


def chain(text, tokens, request=7):
    """A draft of one path below `text`."""
    parents = tuple(range(-1, len(tokens) - 1))
    return Draft(request, len(text), check_of(text), tuple(tokens), parents)


def paths(pool):
    return set(pool.content())


def test_new_then_duplicate():
    pool = make_pool()
    assert pool.offer(1, chain(PROMPT, (4, 5))).kind is Kind.NEW
    assert pool.offer(1, chain(PROMPT, (4, 5))).kind is Kind.DUPLICATE
    assert pool.offer(2, chain(PROMPT, (4,))).kind is Kind.DUPLICATE
    outcome = pool.offer(2, chain(PROMPT, (4, 6)))
    assert (outcome.kind, outcome.new_nodes) == (Kind.NEW, 1)
    assert paths(pool) == {(4,), (4, 5), (4, 6)}


def test_late_draft_keeps_what_hangs_below_the_committed_text():
    pool = make_pool()
    pool.commit([4, 5])
    outcome = pool.offer(1, chain(PROMPT, (4, 5, 6, 7)))
    assert (outcome.kind, outcome.new_nodes) == (Kind.LATE, 2)
    assert paths(pool) == {(6,), (6, 7)}


@pytest.mark.parametrize("tokens", [(4, 8, 6), (9,), (4,), (4, 5), ()])
def test_stale_draft_leaves_or_ends_above_the_root(tokens):
    pool = make_pool()
    pool.commit([4, 5])
    assert pool.offer(1, chain(PROMPT, tokens)).kind is Kind.STALE
    assert len(pool) == 0


def test_late_draft_of_known_nodes_is_a_duplicate():
    pool = make_pool()
    pool.offer(1, chain(PROMPT, (4, 5)))
    pool.commit([4])
    assert pool.offer(1, chain(PROMPT, (4, 5))).kind is Kind.DUPLICATE


def test_early_draft_is_held_until_its_commit():
    pool = make_pool()
    draft = chain((*PROMPT, 4), (5,))
    assert pool.offer(1, draft).kind is Kind.EARLY
    assert pool.offer(1, draft).kind is Kind.EARLY
    assert (len(pool), pool.num_early) == (0, 1)
    assert [(s, o.kind) for s, o in pool.commit([4])] == [(1, Kind.NEW)]
    assert paths(pool) == {(5,)}


def test_early_draft_of_another_text_is_foreign_in_the_end():
    pool = make_pool()
    pool.offer(1, chain((*PROMPT, 4), (5,)))
    assert [o.kind for _, o in pool.commit([9])] == [Kind.FOREIGN]
    assert len(pool) == 0


def test_early_drafts_are_bounded():
    pool = make_pool()
    for token in range(MAX_EARLY_DRAFTS + 5):
        last = pool.offer(1, chain((*PROMPT, 4), (token,)))
    assert pool.num_early == MAX_EARLY_DRAFTS
    assert (last.kind, last.dropped_nodes) == (Kind.EARLY, 1)
    assert pool.offer(2, chain((*PROMPT, 4), (1,))).dropped_nodes == 0


def test_foreign():
    pool = make_pool()
    assert pool.offer(1, chain(PROMPT, (4,), request=8)).kind is Kind.FOREIGN
    assert pool.offer(1, chain((1, 2, 4), (4,))).kind is Kind.FOREIGN
    assert pool.offer(1, chain((1, 2), (3, 4))).kind is Kind.FOREIGN  # before the prompt's end
    assert pool.offer(5, chain(PROMPT, (4,))).kind is Kind.FOREIGN  # not enrolled
    assert len(pool) == 0


def drawn(tokens, children, support=(4, 5, 6, 7), weights=(1, 2, 3, 4), parent=-1):
    expansion = Expansion(parent, children, support, weights)
    return Draft(7, 3, check_of(PROMPT), tokens, (-1,) * len(tokens), (expansion,))


@pytest.mark.parametrize(
    ("options", "draft"),
    [
        ({}, drawn((4, 5), (0, 1))),
        ({"rule": "rejection", "num_draws": 2}, drawn((4,), (0,))),
        ({"rule": "rejection", "num_draws": 2}, drawn((4,), (0, 0))),
    ],
    ids=["draws under match", "too few draws", "one token twice"],
)
def test_invalid_drafts_add_nothing(options, draft):
    pool = make_pool(**options)
    outcome = pool.offer(1, draft)
    assert outcome.kind is Kind.INVALID
    assert "expected" in outcome.reason
    assert len(pool) == 0


def test_a_token_past_the_vocabulary_is_dropped_with_what_hangs_below():
    pool = make_pool()
    tokens, parents = (4, 100, 5, 6, 2**31 - 1), (-1, -1, 1, 0, 3)
    draft = Draft(7, 3, check_of(PROMPT), tokens, parents, (), bytes([9, 1, 2, 7, 3]))
    outcome = pool.offer(1, draft)
    assert (outcome.kind, outcome.new_nodes, outcome.dropped_nodes) == (Kind.NEW, 2, 3)
    assert pool.codes() == {(4,): {1: 9}, (4, 6): {1: 7}}
    outcome = pool.offer(1, draft)
    assert (outcome.kind, outcome.dropped_nodes) == (Kind.DUPLICATE, 3)
    assert outcome.reason == "expected tokens below 100"
    late = chain((*PROMPT, 4), (100, 8))
    assert pool.offer(2, late).kind is Kind.EARLY
    assert [o.kind for _, o in pool.commit([4])] == [Kind.DUPLICATE]
    assert paths(pool) == {(6,)}


def test_draws_from_a_distribution_past_the_vocabulary_are_dropped_whichever_were_drawn():
    """And everything below them; the draws at other nodes stay."""
    support = (4, 5, 150)
    for drawn_tokens in ((4, 5), (5, 4), (4, 150), (150, 5)):
        pool = make_pool(rule="rejection", num_draws=2)
        tokens = (1, 2, *drawn_tokens, 1, 2)
        expansions = (
            Expansion(-1, (0, 1), (1, 2, 3), (1, 1, 1)),
            Expansion(0, (2, 3), support, (5, 6, 7)),
            Expansion(2, (4, 5), (1, 2), (1, 1)),  # below a node that is dropped
        )
        draft = Draft(7, 3, check_of(PROMPT), tokens, (-1, -1, 0, 0, 2, 2), expansions)
        outcome = pool.offer(1, draft)
        assert (outcome.kind, outcome.dropped_nodes) == (Kind.NEW, 4)
        assert pool.content() == {
            (): (frozenset(), {1: Expansion(0, (1, 2), (1, 2, 3), (1, 1, 1))}),
            (1,): (frozenset({1}), {}),
            (2,): (frozenset({1}), {}),
        }


def test_a_draw_on_a_known_node_still_counts():
    pool = make_pool(rule="rejection", num_draws=1)
    assert pool.offer(1, drawn((4,), (0,))).kind is Kind.NEW
    assert pool.offer(2, drawn((4,), (0,))).kind is Kind.NEW
    assert pool.offer(2, drawn((4,), (0,))).kind is Kind.DUPLICATE
    tree = pool.select(9, 9).tree
    assert tree.token_ids == (3, 4)
    assert [e.children for e in tree.expansions] == [(1,), (1,)]


def test_a_second_drawing_is_invalid_unless_the_request_was_opened_anew():
    pool = make_pool(rule="rejection", num_draws=1)
    pool.offer(1, drawn((4,), (0,)))
    assert pool.offer(1, drawn((5,), (0,))).kind is Kind.INVALID
    pool.enrol(1)
    assert pool.offer(1, drawn((5,), (0,))).kind is not Kind.INVALID
    assert pool.select(9, 9).tree.token_ids == (3, 4)  # the first one stays


def test_groups_stand_in_order_of_arrival():
    pool = make_pool(sources=(HOME, 1, 2), rule="rejection", num_draws=2)
    for source, tokens in [(2, (4, 5)), (HOME, (6, 4)), (1, (7, 4))]:
        pool.offer(source, drawn(tokens, (0, 1)))
    tree = pool.select(64, 9).tree
    order = [tuple(tree.token_ids[c] for c in e.children) for e in tree.expansions]
    assert order == [(4, 5), (6, 4), (7, 4)]


@pytest.mark.parametrize("replacement", [False, True])
def test_a_tree_says_by_which_rule_it_is_verified(replacement):
    guessed = make_pool().select(9, 9).tree
    assert guessed.expansions is None
    pool = make_pool(rule="rejection", num_draws=1, replacement=replacement)
    assert pool.select(9, 9).tree.expansions == ()  # also while there is nothing to verify
    pool.offer(1, drawn((4,), (0,)))
    drawn_tree = pool.select(9, 9).tree
    assert len(drawn_tree.expansions) == 1
    assert drawn_tree.replacement is replacement


@pytest.mark.parametrize("replaced", [(4, 5), (4, 4)])
def test_rejection_budget_is_a_fixed_charge(replaced):
    pool = make_pool(sources=(1,), rule="rejection", num_draws=2, replacement=True)
    tokens = tuple(dict.fromkeys(replaced))
    children = tuple(tokens.index(t) for t in replaced)
    pool.offer(1, drawn(tokens, children))
    below = Draft(
        7, 3, check_of(PROMPT), (4, 6, 7), (-1, 0, 0), (Expansion(0, (1, 2), (6, 7), (1, 1)),)
    )
    pool.offer(1, below)
    # 4 rows would hold root, 4, 6, 7 if the first group came out small; the charge does not look.
    assert len(pool.select(4, 9).tree.expansions) == 1
    assert len(pool.select(5, 9).tree.expansions) == 2


def test_bounds_are_of_each_source():
    pool = make_pool(max_source_nodes=3)
    outcome = pool.offer(1, chain(PROMPT, (4, 5, 6, 7, 8)))
    assert (outcome.new_nodes, outcome.dropped_nodes) == (3, 2)
    assert pool.offer(2, chain(PROMPT, (4, 9))).new_nodes == 1
    pool.commit([4])
    assert pool.offer(1, chain((*PROMPT, 4), (5, 6, 7))).new_nodes == 1


def test_a_group_past_the_bound_is_dropped_whole():
    pool = make_pool(rule="rejection", num_draws=2, max_source_nodes=3)
    assert pool.offer(1, drawn((4, 5), (0, 1))).new_nodes == 2
    draft = Draft(
        7, 3, check_of(PROMPT), (4, 6, 7), (-1, 0, 0), (Expansion(0, (1, 2), (6, 7), (1, 1)),)
    )
    pool.offer(1, draft)
    assert len(pool.select(64, 9).tree.expansions) == 1


def test_a_flood_leaves_room_for_the_others():
    pool = make_pool()
    for token in range(60):
        pool.offer(1, chain(PROMPT, (token,)))
    pool.offer(2, chain(PROMPT, (90, 91, 92, 93)))
    selection = pool.select(16, 9)
    assert len(selection.tree.token_ids) == 16
    assert selection.depth_of(2) == 4


def sure(text, tokens, *probabilities):
    codes = bytes(code_of(p) for p in probabilities)
    return replace(chain(text, tokens), confidences=codes)


def test_selection_takes_what_is_likeliest_up_to_the_depth():
    pool = make_pool(sources=(1,))
    pool.offer(1, sure(PROMPT, (4, 5, 6), 0.7, 0.9, 0.1))
    pool.offer(1, sure(PROMPT, (7,), 0.25))
    assert pool.select(64, 2).tree.token_ids == (3, 4, 5, 7)
    assert pool.select(3, 9).tree.token_ids == (3, 4, 5)
    whole = pool.select(64, 9)
    assert whole.probabilities == pytest.approx((1, 0.7, 0.63, 0.25, 0.063), rel=0.05)
    assert whole.expected_tokens == pytest.approx(2.64, rel=0.05)
    # The path may run out below 7 and below 6; at 5 another token than 6 is a miss.
    assert whole.open_mass == pytest.approx(0.313, rel=0.05)
    assert pool.select(64, 2).open_mass == pytest.approx(0.25, rel=0.05)
    selection = pool.select(1, 9)
    assert selection == Selection(selection.tree, ((),), (0,), (1.0,), selection.openness)
    assert selection.open_mass == pytest.approx(0.0, abs=0.01)


def test_a_source_that_is_too_sure_is_found_out():
    worths = Worths()
    text = list(PROMPT)
    for token in range(10, 60):  # 1 claims much and is always wrong, 2 claims little and is right
        pool = Pool(7, text, vocab_size=100, worths=worths)
        for source in (1, 2):
            pool.enrol(source)
        pool.offer(1, sure(text, (1, 2, 3), 0.95, 0.95, 0.95))
        pool.offer(2, sure(text, (token,), 0.4))
        taken = pool.select(3, 9).tree.token_ids[1:]
        pool.commit([token])
        text.append(token)
    assert taken[0] == 59
    assert worths.of(1).calibration.table[code_of(0.95)] < 0.1
    assert worths.of(2).calibration.table[code_of(0.4)] > 0.8
    assert worths.credit(1) < 0.01
    assert worths.credit(2) > 0.9


def test_the_best_confidence_of_a_source_counts_in_any_order():
    pools = [make_pool() for _ in range(2)]
    drafts = [sure(PROMPT, (4,), p) for p in (0.5, 0.9, 0.7)]
    for pool, order in zip(pools, (drafts, drafts[::-1]), strict=True):
        for draft in order:
            pool.offer(1, draft)
        assert pool.codes() == {(4,): {1: code_of(0.9)}}


def test_a_selection_comes_back_as_a_draft_to_grow_on():
    pool = make_pool()
    pool.offer(1, sure(PROMPT, (4, 5), 0.7, 0.9))
    pool.offer(2, sure(PROMPT, (6,), 0.2))
    draft = pool.as_draft(pool.select(64, 9))
    assert make_pool().offer(1, draft).new_nodes == 3
    assert draft.confidences == bytes(map(code_of, (0.7, 0.9, 0.2)))


def test_selections_edges():
    pool = make_pool(sources=(1,))
    pool.offer(1, chain(PROMPT, (4, 5, 6)))
    tree = pool.select(64, 9).tree
    DraftTree.build([(tree.token_ids, tree.parents)])


def test_retire_is_as_if_never_offered():
    pool = make_pool()
    pool.offer(1, chain(PROMPT, (4, 5)))
    pool.offer(2, chain(PROMPT, (4, 6)))
    pool.retire(1)
    assert paths(pool) == {(4,), (4, 6)}


def takes_all(expansion):
    return True


def takes_what_brings_rows(expansion):
    """Planted bug: a group whose draws fell on one token is not worth its place."""
    return len(set(expansion.children)) == len(expansion.children)


TARGET = (0.6, 0.4, 0.0, 0.0)


def test_home_may_join_because_of_what_a_remote_drew():
    """As a policy does that drafts at home when the remote tree promises little.

    The planted twin verifies in enrolment order: the remote's draw then decides about draws that
    are verified before it.
    """

    def shares(by_arrival, rounds=20_000):
        rng = random.Random(6)
        counts = Counter()
        for _ in range(rounds):
            pool = make_pool(sources=(HOME, 1), rule="rejection", num_draws=1)
            draws = {1: rng.randrange(4), HOME: rng.randrange(4)}
            for source in (1, HOME) if draws[1] == 0 else (1,):
                pool.offer(source, drawn((draws[source],), (0,), (0, 1, 2, 3), (1, 1, 1, 1)))
            tree = pool.select(9, 1).tree
            drawn_tokens = [tree.token_ids[c] for e in tree.expansions for c in e.children]
            counts[verify(drawn_tokens if by_arrival else drawn_tokens[::-1], rng)] += 1
        return [counts[t] / rounds for t in range(4)]

    # A standard error below 0.0035; five of them are passed once in a million runs.
    assert shares(by_arrival=True) == pytest.approx(TARGET, abs=0.0175)
    assert shares(by_arrival=False) != pytest.approx(TARGET, abs=0.0175)


def output_shares(takes, rounds=20_000):
    """How often each token follows, verifying two draws of a uniform q against TARGET."""
    rng = random.Random(5)
    counts = Counter()
    for _ in range(rounds):
        pool = make_pool(sources=(1,), rule="rejection", num_draws=2, replacement=True)
        draws = rng.choices(range(4), k=2)
        tokens = tuple(sorted(set(draws)))
        children = tuple(tokens.index(t) for t in draws)
        pool.offer(1, drawn(tokens, children, (0, 1, 2, 3), (1, 1, 1, 1)))
        tree = pool.select(3, 1).tree
        drawn_tokens = [
            tree.token_ids[c] for e in filter(takes, tree.expansions) for c in e.children
        ]
        counts[verify(drawn_tokens, rng)] += 1
    return [counts[t] / rounds for t in range(4)]


def verify(drawn_tokens, rng):
    r, q = TARGET, 0.25
    for x in drawn_tokens:
        if rng.random() * q < r[x]:
            return x
        rest = [max(a - q, 0.0) for a in r]
        r = [a / sum(rest) for a in rest]
    return rng.choices(range(4), r)[0]


def test_taking_groups_by_a_fixed_charge_keeps_the_distribution():
    # A standard error below 0.0035; five of them are passed once in a million runs.
    assert output_shares(takes_all) == pytest.approx(TARGET, abs=0.0175)
    assert output_shares(takes_what_brings_rows) != pytest.approx(TARGET, abs=0.0175)


def test_what_is_past_the_vocabulary_is_dropped_without_a_look_at_the_draws():
    """One source's distribution holds a token past the vocabulary, and another's does not.

    The planted twin drops a group only where such a token was drawn: the groups that stay are those
    that drew others, which their distribution does not say.
    """

    def shares(whole_distribution, rounds=20_000):
        rng = random.Random(7)
        counts = Counter()
        for _ in range(rounds):
            pool = make_pool(rule="rejection", num_draws=1)
            supports = {1: (0, 1, 100, 101), 2: (0, 1, 2, 3)}
            for source, support in supports.items():
                token = rng.choice(support)
                if not whole_distribution and token < 100:
                    support = (0, 1, 2, 3)
                pool.offer(source, drawn((token,), (0,), support, (1, 1, 1, 1)))
            tree = pool.select(9, 1).tree
            drawn_tokens = [tree.token_ids[c] for e in tree.expansions for c in e.children]
            assert all(token < 100 for token in drawn_tokens)
            counts[verify(drawn_tokens, rng)] += 1
        return [counts[t] / rounds for t in range(4)]

    # A standard error below 0.0035; five of them are passed once in a million runs.
    assert shares(whole_distribution=True) == pytest.approx(TARGET, abs=0.0175)
    assert shares(whole_distribution=False) != pytest.approx(TARGET, abs=0.0175)
