"""Growth against a table instead of a model: order, budget, commits, messages."""

import math
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drafter.candidates import Candidates
from drafter.growth import Growth, GrowthShape
from drafter.plan import Plan
from wanspec_kernels.wire import MAX_DRAFT_NODES, Draft, Open, check_of, decode, encode
from wanspec_kernels.wire.confidence import code_of

VOCAB = 12


def open_request(token_ids=(1, 2, 3), **changes) -> Open:
    settings = {
        "request": 7,
        "token_ids": tuple(token_ids),
        "rule": "match",
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": None,
        "max_nodes": 32,
        "max_depth": 16,
        "num_draws": 0,
        "replacement": False,
    }
    return Open(**(settings | changes))


def grow(request: Open, **changes) -> Growth:
    settings = {"max_positions": 4096, "max_nodes": 1024, "random": Random(0)}
    return Growth(request, **(settings | changes))


def table(text: tuple[int, ...]) -> Candidates:
    """The fake model: a skewed distribution that depends on the whole text."""
    random = Random(hash(text))
    tokens = random.sample(range(VOCAB), VOCAB)
    weights = [random.random() ** 4 + 1e-3 for _ in tokens]
    ordered = sorted(zip(weights, tokens, strict=True), reverse=True)
    total = sum(weights)
    return Candidates(tuple(t for _, t in ordered), tuple(w / total for w, _ in ordered))


class Checked:
    """A growth whose every plan is checked against what the slots hold."""

    def __init__(self, growth: Growth, text) -> None:
        self.growth = growth
        self.text = list(text)
        self.contents: dict[int, tuple[int, ...]] = {}  # slot -> the text up to its token

    def run_pass(self) -> Plan | None:
        plan = self.growth.plan()
        if plan is None:
            return None
        texts = self.texts_of(plan)
        wanted = [table(texts[row]) for row in plan.rows]
        self.growth.absorb(plan, wanted)
        return plan

    def texts_of(self, plan: Plan) -> list[tuple[int, ...]]:
        held = dict(self.contents)
        texts: dict[int, tuple[int, ...]] = {}
        for i in range(len(plan.token_ids)):
            slot, position = int(plan.slots[i]), int(plan.positions[i])
            seen = sorted(
                (texts[s] if s in texts else held[s])
                for s in np.flatnonzero(plan.visible[i]).tolist()
                if s != slot
            )
            assert [len(t) for t in seen] == list(range(1, position + 1))
            assert all(longer[:-1] == shorter for shorter, longer in pairwise(seen))
            own = (*(seen[-1] if seen else ()), int(plan.token_ids[i]))
            texts[slot] = own
        self.contents |= texts
        return [texts[int(slot)] for slot in plan.slots]


def paths_of(draft: Draft) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(draft.token_ids, draft.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


def probability(text, path) -> float:
    p = 1.0
    for i, token in enumerate(path):
        row = table((*text, *path[:i]))
        p *= dict(zip(row.token_ids, row.probabilities, strict=True))[token]
    return p


def test_the_first_pass_takes_the_prompt_in_chunks():
    growth = grow(open_request(range(10)), shape=GrowthShape(prompt_chunk=4))
    checked = Checked(growth, range(10))
    chunks = [checked.run_pass() for _ in range(3)]
    assert [len(plan.token_ids) for plan in chunks] == [4, 4, 2]
    assert [plan.rows.tolist() for plan in chunks] == [[], [], [1]]
    assert growth.num_nodes > 0


def test_expands_the_likeliest_nodes_first():
    text = (1, 2, 3)
    growth = grow(open_request(text, max_nodes=64), shape=GrowthShape(width=3))
    checked = Checked(growth, text)
    checked.run_pass()
    known = set(paths_of(growth.take_drafts()[0]))
    expanded: set[tuple[int, ...]] = set()
    while growth.num_nodes < 40:
        plan = checked.run_pass()
        chosen = {checked.contents[int(s)][len(text) :] for s in plan.slots}
        left = known - expanded - chosen
        assert min(probability(text, p) for p in chosen) >= max(
            (probability(text, p) for p in left), default=0.0
        )
        expanded |= chosen
        for draft in growth.take_drafts():
            known |= set(paths_of(draft))


def test_children_are_the_likely_ones():
    shape = GrowthShape(min_probability=0.2, max_children=2, max_root_children=3)
    growth = grow(open_request(), shape=shape)
    growth.absorb(growth.plan(), [Candidates((4, 5, 6, 7), (0.3, 0.25, 0.21, 0.2))])
    assert paths_of(growth.take_drafts()[0]) == [(4,), (5,), (6,)]
    plan = growth.plan()
    rows = {4: (0.5, 0.3, 0.2), 5: (0.1, 0.08, 0.05), 6: (0.9, 0.1, 0.0)}
    growth.absorb(plan, [Candidates((1, 2, 3), rows[int(t)]) for t in plan.token_ids])
    below = [path for path in paths_of(growth.take_drafts()[0]) if len(path) == 2]
    # Two at most; a likeliest child needs no probability of its own; 6 has only one.
    assert sorted(below) == [(4, 1), (4, 2), (5, 1), (6, 1)]


@pytest.mark.parametrize("max_nodes", [1, 5, 32])
def test_budget_and_depth_are_kept(max_nodes):
    text = (1, 2, 3)
    growth = grow(open_request(text, max_nodes=max_nodes, max_depth=4))
    checked = Checked(growth, text)
    while checked.run_pass() is not None:
        assert growth.num_nodes <= max_nodes
    paths = {path for draft in growth.take_drafts() for path in paths_of(draft)}
    assert len(paths) == growth.num_nodes
    assert max(map(len, paths)) <= 4
    assert growth.num_nodes == max_nodes or max(map(len, paths)) == 4


def test_candidates_without_room_come_after_the_commit():
    growth = grow(open_request(max_nodes=2))
    growth.absorb(growth.plan(), [Candidates((4, 5), (0.6, 0.4))])
    assert growth.plan() is None
    growth.commit([4])
    assert growth.num_nodes == 0
    plan = growth.plan()
    growth.absorb(plan, [Candidates((6, 7, 8), (0.5, 0.3, 0.2))])
    assert growth.num_nodes == 2
    growth.take_drafts()
    growth.commit([7])
    assert growth.num_nodes == 0  # 8 was a sibling of 7: it has gone with it


def test_a_commit_keeps_the_matching_subtree_and_its_slots():
    text = (1, 2, 3)
    growth = grow(open_request(text, max_nodes=40), shape=GrowthShape(width=2))
    checked = Checked(growth, text)
    while checked.run_pass() is not None:
        pass
    paths = [path for draft in growth.take_drafts() for path in paths_of(draft)]
    deepest = max(paths, key=len)
    assert len(deepest) > 3
    committed = deepest[:2]
    growth.commit(committed)
    growth.unsend()
    kept = [path for draft in growth.take_drafts() for path in paths_of(draft)]
    assert set(kept) == {p[2:] for p in paths if p[:2] == committed and len(p) > 2}
    plan = checked.run_pass()  # no token of the text has to be computed again
    assert all(position >= len(text) + 2 for position in plan.positions)


def test_a_token_outside_the_tree_leaves_only_itself_to_compute():
    text = (1, 2, 3)
    growth = grow(open_request(text))
    checked = Checked(growth, text)
    for _ in range(4):
        checked.run_pass()
    unknown = next(t for t in range(VOCAB, VOCAB + 1))
    growth.commit([unknown])
    assert growth.num_nodes == 0
    assert growth.num_slots_taken == 3
    plan = growth.plan()
    assert (plan.token_ids.tolist(), plan.positions.tolist()) == ([unknown], [3])
    assert growth.check == check_of([*text, unknown])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["match", "rejection"]))
def test_random_commits_and_restarts(seed, rule):
    """Every plan attends to exactly its own text, and no slot leaks, whatever is committed."""
    random = Random(seed)
    text = [random.randrange(VOCAB) for _ in range(random.randrange(1, 9))]
    draws = {"num_draws": 3, "replacement": seed % 2 == 0} if rule == "rejection" else {}
    request = open_request(text, rule=rule, temperature=0.7, max_nodes=20, max_depth=6, **draws)
    growth = grow(request, shape=GrowthShape(width=3, prompt_chunk=4))
    checked = Checked(growth, text)
    sent: set[tuple[int, ...]] = set()
    for _ in range(40):
        action = random.random()
        if action < 0.6:
            checked.run_pass()
        elif action < 0.65:
            plan = growth.plan()
            if plan is not None:
                growth.abandon(plan)
        elif action < 0.95:
            options = [p[len(text) :] for p in sent if list(p[: len(text)]) == text]
            options = [p for p in options if p] or [()]
            tokens = [*random.choice(options), *([random.randrange(VOCAB)] * random.randrange(2))]
            growth.commit(tokens)
            text += tokens
        else:
            text = text[: random.randrange(1, len(text) + 1)]
            text += [random.randrange(VOCAB) for _ in range(random.randrange(3))]
            growth.restart(text)
        for draft in growth.take_drafts():
            assert decode(encode(draft)) == draft
            assert draft.base_length == len(text)
            assert draft.base_check == check_of(text)
            sent |= {(*text, *path) for path in paths_of(draft)}
        assert growth.num_nodes <= 20
        assert growth.num_slots_taken <= len(text) + 20
    tokens = [VOCAB + 1]
    growth.commit(tokens)
    growth.plan()
    assert growth.num_slots_taken <= len(text) + 1


def test_thousands_of_commits_leak_nothing():
    text = [1, 2, 3]
    growth = grow(open_request(text, max_nodes=16), shape=GrowthShape(width=4))
    random = Random(5)
    for _ in range(3000):
        plan = growth.plan()
        if plan is not None:
            rows = [random.sample(range(VOCAB), 3) for _ in plan.rows]
            growth.absorb(plan, [Candidates(tuple(r), (0.6, 0.3, 0.1)) for r in rows])
        if random.random() < 0.5:
            token = random.randrange(VOCAB)
            growth.commit([token])
            text.append(token)
        growth.take_drafts()
    growth.commit([VOCAB])
    assert growth.num_nodes == 0
    assert growth.num_slots_taken <= len(text)
    assert growth._layout.slots.high_water <= len(text) + 1 + 16
    assert not growth._unexpanded
    assert not growth._held_back


def test_no_position_past_the_models_last():
    text = tuple(range(6))
    growth = grow(open_request(text, max_nodes=300), max_positions=8)
    checked = Checked(growth, text)
    positions: list[int] = []
    while (plan := checked.run_pass()) is not None:
        positions += plan.positions.tolist()
    assert max(positions) == 7
    growth.commit([1, 1, 1])
    assert growth.too_long
    assert growth.plan() is None


def test_an_infinite_row_gives_no_children():
    growth = grow(open_request())
    growth.absorb(growth.plan(), [Candidates((), ())])
    assert growth.num_nodes == 0
    assert growth.plan() is None


def test_messages_split_where_they_have_to():
    growth = grow(open_request(max_nodes=600, max_depth=64), shape=GrowthShape(width=64))
    tokens = tuple(range(4))
    while growth.num_nodes < 600:
        plan = growth.plan()
        growth.absorb(plan, [Candidates(tokens, (0.4, 0.3, 0.2, 0.1))] * len(plan.rows))
    drafts = growth.take_drafts()
    assert len(drafts) >= 3
    assert all(len(draft.token_ids) <= MAX_DRAFT_NODES for draft in drafts)
    assert len({path for draft in drafts for path in paths_of(draft)}) == 600
    assert growth.take_drafts() == []
    growth.unsend()
    assert {path for d in growth.take_drafts() for path in paths_of(d)} == {
        path for draft in drafts for path in paths_of(draft)
    }


def test_draws_are_fixed_in_number_and_travel_with_their_path():
    text = (1, 2, 3)
    request = open_request(
        text, rule="rejection", temperature=0.7, num_draws=3, replacement=True, max_nodes=24
    )
    growth = grow(request, shape=GrowthShape(width=2))
    checked = Checked(growth, text)
    expanded = 0
    while (plan := checked.run_pass()) is not None:
        expanded += len(plan.rows)
        for draft in growth.take_drafts():
            paths = paths_of(draft)
            owners = {e.parent for e in draft.expansions}
            # Every node hangs from a node whose draws are in the same message.
            assert set(draft.parents) == owners
            for expansion in draft.expansions:
                assert len(expansion.children) == 3
                base = paths[expansion.parent] if expansion.parent >= 0 else ()
                row = table((*text, *base))
                assert expansion.token_ids == row.token_ids
                largest = row.probabilities[0]
                assert list(expansion.weights) == [
                    round(p / largest * 65535) for p in row.probabilities
                ]
                for child in expansion.children:
                    assert draft.parents[child] == expansion.parent
    assert expanded == 24 // 3


def test_a_small_support_is_padded_to_the_number_of_draws():
    """The verifier takes another number of draws for a lie."""
    request = open_request(rule="rejection", temperature=0.7, num_draws=3, max_nodes=24)
    growth = grow(request)
    growth.absorb(growth.plan(), [Candidates((5, 6, 7, 8), (1.0, 0.0, 0.0, 0.0))])
    (draft,) = growth.take_drafts()
    (expansion,) = draft.expansions
    assert len(set(expansion.children)) == 3
    assert (expansion.token_ids, expansion.weights) == ((5, 6, 7), (65535, 1, 1))


def test_more_draws_than_nodes_are_refused():
    request = open_request(rule="rejection", num_draws=9, max_nodes=8)
    with pytest.raises(ValueError, match="num_draws: expected at most 8 nodes"):
        grow(request)


def test_probabilities_of_paths_multiply():
    growth = grow(open_request())
    growth.absorb(growth.plan(), [Candidates((4,), (0.5,))])
    plan = growth.plan()
    growth.absorb(plan, [Candidates((5,), (0.25,))])
    (node,) = [n for n in growth._root.below() if n.token == 5]
    assert math.isclose(node.log_probability, math.log(0.125))


def test_what_was_learnt_does_not_turn_the_models_order():
    growth = grow(open_request())
    for _ in range(50):  # What is claimed with 0.2 is always right, with 0.6 never.
        growth.absorb(growth.plan(), [Candidates((4, 5), (0.6, 0.2))])
        (draft,) = growth.take_drafts()
        assert paths_of(draft) == [(4,), (5,)]
        growth.commit([5])
    # It was learnt as far as the order allows: they are worth the same.
    growth.absorb(growth.plan(), [Candidates((4, 5), (0.6, 0.2))])
    (below_4, below_5) = (node.log_probability for node in growth._root.below())
    assert below_4 == below_5


def test_a_grafted_node_that_others_made_little_of_is_grown_and_sent():
    """It hangs in the verifier's tree with no more than they claimed for it."""
    growth = grow(open_request())
    graft = Draft(7, 3, check_of((1, 2, 3)), (5, 6), (-1, 0), (), bytes([254, 254]))
    growth.graft(graft)
    plan = growth.plan()
    rows = [Candidates((5,), (0.9,)) for _ in plan.rows]
    growth.absorb(plan, rows)
    (draft,) = growth.take_drafts()
    assert draft.token_ids[0] == 5
    assert draft.confidences[0] == code_of(0.9)
    assert growth.plan() is not None  # below 5
