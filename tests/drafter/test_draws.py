"""Draws come from the quantised weights, exactly."""

from collections import Counter
from itertools import permutations
from random import Random

from drafter.candidates import Candidates
from drafter.draws import draw, quantise

# Quantisation moves 10 % of the second token's mass here: 4 levels instead of 65535.
PROBABILITIES = (0.55, 0.25, 0.13, 0.07)
TOKENS = (9, 4, 7, 2)
COARSE = (4, 2, 1, 1)
# Chi-square quantiles for a false-alarm rate of 1e-6.
CHI_SQUARE_3 = 30.7
CHI_SQUARE_11 = 49.3
COUNT = 20_000


def chi_square(counts: Counter, expected: dict) -> float:
    assert counts.keys() <= expected.keys()
    return sum((counts[k] - e) ** 2 / e for k, e in expected.items())


def test_quantised_weights():
    tokens, weights = quantise(Candidates(TOKENS, (0.5, 0.25, 1e-7, 0.0)), 1)
    assert (tokens, weights) == ((9, 4), (65535, 32768))
    tokens, weights = quantise(Candidates(TOKENS, (0.5, 0.25, 1e-7, 0.0)), 4)
    assert (tokens, weights) == (TOKENS, (65535, 32768, 1, 1))
    assert quantise(Candidates((), ()), 2) == ((), ())


def test_draws_with_replacement_follow_the_weights():
    random = Random(1)
    drawn = Counter(draw(TOKENS, COARSE, COUNT, replacement=True, random=random))
    assert sum(drawn.values()) == COUNT
    expected = {t: COUNT * w / sum(COARSE) for t, w in zip(TOKENS, COARSE, strict=True)}
    assert chi_square(drawn, expected) < CHI_SQUARE_3
    # The twin that draws from what was there before quantisation is found out.
    twin = Counter(random.choices(TOKENS, PROBABILITIES, k=COUNT))
    assert chi_square(twin, expected) > CHI_SQUARE_3


def test_draws_without_replacement_renormalise_the_rest():
    weights = dict(zip(TOKENS, COARSE, strict=True))
    expected = {
        (a, b): COUNT * weights[a] / 8 * weights[b] / (8 - weights[a])
        for a, b in permutations(TOKENS, 2)
    }
    random = Random(2)
    pairs = Counter(
        tuple(draw(TOKENS, COARSE, 2, replacement=False, random=random)) for _ in range(COUNT)
    )
    assert chi_square(pairs, expected) < CHI_SQUARE_11
    # The twin repeats a draw until it is new, but with the first token's weight halved.
    twin = Counter(
        tuple(draw(TOKENS, (2, 2, 1, 1), 2, replacement=False, random=random)) for _ in range(COUNT)
    )
    assert chi_square(twin, expected) > CHI_SQUARE_11


def test_no_more_without_replacement_than_there_are():
    drawn = draw(TOKENS, COARSE, 9, replacement=False, random=Random(3))
    assert sorted(drawn) == sorted(TOKENS)
    assert draw((), (), 3, replacement=True, random=Random(3)) == []
