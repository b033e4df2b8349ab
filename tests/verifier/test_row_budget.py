import pytest

from wanspec_kernels.verifier.row_budget import RowBudget


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
