"""What `rejection` needs of a drafter: draws, and exactly what they were drawn from."""

from collections.abc import Sequence
from random import Random

from drafter.candidates import Candidates

MAX_WEIGHT = 65535


def quantise(candidates: Candidates, num_draws: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Support and weights (1..65535) of what is drawn from: exactly ``weights / sum(weights)``.

    Draws come from these integers, never from the probabilities: the verifier sees only them. The
    first `num_draws` candidates weigh at least 1, so that many can always be drawn without
    replacement: any q is exact, and the number of draws has to be the same at every node.
    """
    if not candidates.token_ids:
        return (), ()
    largest = candidates.probabilities[0]
    scaled = [
        max(round(p / largest * MAX_WEIGHT), int(i < num_draws))
        for i, p in enumerate(candidates.probabilities)
    ]
    kept = [(t, w) for t, w in zip(candidates.token_ids, scaled, strict=True) if w > 0]
    return tuple(t for t, _ in kept), tuple(w for _, w in kept)


def draw(
    token_ids: Sequence[int],
    weights: Sequence[int],
    count: int,
    *,
    replacement: bool,
    random: Random,
) -> list[int]:
    """`count` tokens in the order drawn; without replacement, at most as many as the support has.

    Exact: in integers, and `randrange` rejects rather than rounds.
    """
    left = list(weights)
    total = sum(left)
    drawn: list[int] = []
    while len(drawn) < count and total > 0:
        ticket = random.randrange(total)
        for i, w in enumerate(left):
            ticket -= w
            if ticket < 0:
                drawn.append(token_ids[i])
                if not replacement:
                    total -= w
                    left[i] = 0
                break
    return drawn
