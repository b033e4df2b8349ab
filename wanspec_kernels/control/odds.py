"""Odds: how texts have turned out so far, and how fast they were decoded."""

from collections.abc import Sequence

FADING = 0.98  # a verdict
LEVEL_FADING = 0.95  # a draft pass
PRIOR_LEVELS = 8.0
PRIOR_ACCEPTANCE, PRIOR_COVERAGE = 0.7, 0.85
MAX_EXPANSIONS = 32  # of one tree under `rejection`

RATE_FADING = 0.95  # a pass
PRIOR_PASSES = 4.0


class Odds:
    """Fading counts, shared by all requests; each returns to its prior."""

    def __init__(self) -> None:
        self._accepted = self._offered = 0.0  # levels of verified trees
        self._held = self._asked = 0.0  # tokens that pools held, and should have
        self._gained = self._open = 0.0  # by draft passes at home, and the mass they grew on
        self._worth = [PRIOR_ACCEPTANCE ** (k + 1) for k in range(MAX_EXPANSIONS)]

    @property
    def acceptance(self) -> float:
        """Of a level of a verified tree, given the level above."""
        return (PRIOR_ACCEPTANCE * PRIOR_LEVELS + self._accepted) / (PRIOR_LEVELS + self._offered)

    @property
    def coverage(self) -> float:
        """Probability that a level of a pool holds the path's token, given the level above."""
        return (PRIOR_COVERAGE * PRIOR_LEVELS + self._held) / (PRIOR_LEVELS + self._asked)

    @property
    def expansion_worth(self) -> Sequence[float]:
        """Tokens accepted at the first expansion of a tree under `rejection`, the second, …"""
        return self._worth

    @property
    def level_worth(self) -> float:
        """Tokens that a level more brings, over their rows' time, for each that runs out here."""
        return (PRIOR_ACCEPTANCE * PRIOR_LEVELS + self._gained) / (PRIOR_LEVELS + self._open)

    def observe_level(self, gained: float, mass: float) -> None:
        """A draft pass at home made the next pass worth so much more."""
        self._gained = LEVEL_FADING * self._gained + gained
        self._open = LEVEL_FADING * self._open + mass

    def observe_tree(self, depth: int, num_accepted: int) -> None:
        """So many drafts of a tree of this depth were accepted."""
        self._accepted = FADING * self._accepted + num_accepted
        self._offered = FADING * self._offered + min(depth, num_accepted + 1)

    def observe_pool(self, held: float, missed: float) -> None:
        """Of the tokens committed a pool had held some, where it had anything, and missed some."""
        self._held = FADING * self._held + held
        self._asked = FADING * self._asked + held + missed

    def observe_expansions(self, accepted: Sequence[bool]) -> None:
        """At which of a tree's expansions, in their order, a draw was accepted."""
        for k, hit in enumerate(accepted[:MAX_EXPANSIONS]):
            self._worth[k] += (1.0 - FADING) * (hit - self._worth[k])


class Rate:
    """Tokens a millisecond and request, over the last passes and the pauses between them."""

    def __init__(self) -> None:
        self._tokens = self._ms = 0.0

    def observe(self, tokens: int, requests: int, ms: float) -> None:
        """A round ended, of so many requests: a pass, and what was waited for it."""
        self._tokens = RATE_FADING * self._tokens + tokens / max(1, requests)
        self._ms = RATE_FADING * self._ms + ms

    def tokens_per_ms(self, requests: int, plain_ms: float) -> float:
        """Of so many requests; before there is anything to go by, as by plain decoding."""
        prior_ms = PRIOR_PASSES * max(1e-3, plain_ms)
        return requests * (PRIOR_PASSES + self._tokens) / (prior_ms + self._ms)
