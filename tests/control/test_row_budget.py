import pytest

from tests.serving.fake_models import VOCAB_SIZE, FakeHome
from wanspec_kernels.control.policy import DraftAtHome, Verify
from wanspec_kernels.control.row_budget import RowBudget
from wanspec_kernels.engine import actions as actions_of
from wanspec_kernels.engine.generation import Generation
from wanspec_kernels.engine.request import Limits, Request

PROMPT = (1, 2, 3)


def settled(cost_ms, accepted, rounds=200, max_rows=64):
    """The budget's choices once it has seen trees that always fill it, and accept these nodes."""
    budget = RowBudget(max_rows)
    chosen = []
    for i in range(rounds):
        rows = budget.choose()
        chosen.append(rows)
        # Now and then little was here: such passes show what a few rows cost.
        num_rows = 1 if i % 9 == 5 else rows
        nodes = [n for n in accepted if n < num_rows]
        budget.observe(num_rows, rows, nodes, cost_ms(num_rows), 0.0)
    return chosen[-40:]


def test_rows_that_cost_nothing_are_all_taken():
    assert set(settled(lambda rows: 30.0, [1, 5, 40])) == {64}


def test_what_costs_no_more_than_noise_is_free():
    """No late row is accepted for long: the smallest trees would win by a thousandth."""
    assert set(settled(lambda rows: 30.0 + 0.01 * rows, [1])) == {64}


def test_rows_that_cost_are_taken_where_they_bring_something():
    chosen = settled(lambda rows: 17.0 + 1.0 * rows, [1, 3, 6])
    assert sorted(set(chosen)) == [8, 64]
    assert chosen.count(64) <= 3  # the probes


def test_useless_trees_are_made_small():
    assert sorted(set(settled(lambda rows: 17.0 + 1.0 * rows, []))) == [2, 64]


@pytest.mark.parametrize("max_rows", [1, 2, 3, 64, 1024])
def test_choices_keep_within_the_bound(max_rows):
    for cost_ms in (lambda rows: 0.0, lambda rows: 0.5 * rows):
        assert all(1 <= r <= max_rows for r in settled(cost_ms, [1], 50, max_rows))


class FourRows:
    """A budget that has found no more than four rows worth having."""

    def choose(self):
        return 4

    def observe(self, *_):
        pass


@pytest.mark.parametrize(("max_rows", "passes"), [(64, 10), (4, 2)], ids=["budget", "limit"])
def test_home_is_not_stopped_by_a_budget_as_by_the_largest_tree(max_rows, passes):
    """Home stopped where the budget was full, so no pass ever showed what deeper trees bring."""

    class Deep:
        def decide(self, view):
            enough = view.home_passes >= 10 or view.depth >= view.max_depth
            return Verify() if view.verifying or enough else DraftAtHome(1)

    generation = Generation(
        Request(PROMPT, 40),
        vocab_size=VOCAB_SIZE,
        policy=Deep(),
        rows=FourRows(),
        limits=Limits(max_rows=max_rows),
        home=True,
    )
    home, asked = FakeHome(skill=1.0), 0
    actions = generation.start(0.0)
    while isinstance(actions[-1], actions_of.DraftAtHome):
        asked += 1
        drafts = home.draft(1, PROMPT, asked)
        actions = generation.home_finished(drafts, float(asked))
    assert asked == passes
    assert len(actions[0].tree.token_ids) == 4
