"""Odds: how texts have turned out so far, and how fast they were decoded."""

from collections.abc import Sequence

from wanspec_kernels.control.tuning import TUNING, Tuning

MAX_EXPANSIONS = 32  # of one tree under `rejection`


class Odds:
    """Fading counts, shared by all requests; each returns to its prior."""

    def __init__(self, tuning: Tuning = TUNING) -> None:
        self._tuning = tuning
        self._accepted = self._offered = 0.0  # levels of verified trees
        self._held = self._asked = 0.0  # tokens that pools held, and should have
        self._gained = self._open = 0.0  # by draft passes at home, and the mass they grew on
        self._worth = [tuning.prior_acceptance ** (k + 1) for k in range(MAX_EXPANSIONS)]

    @property
    def acceptance(self) -> float:
        """Of a level of a verified tree, given the level above."""
        return self._with_prior(self._tuning.prior_acceptance, self._accepted, self._offered)

    @property
    def coverage(self) -> float:
        """Probability that a level of a pool holds the path's token, given the level above."""
        return self._with_prior(self._tuning.prior_coverage, self._held, self._asked)

    @property
    def expansion_worth(self) -> Sequence[float]:
        """Tokens accepted at the first expansion of a tree under `rejection`, the second, …"""
        return self._worth

    @property
    def level_worth(self) -> float:
        """Tokens that a level more brings, over their rows' time, for each that runs out here."""
        return self._with_prior(self._tuning.prior_acceptance, self._gained, self._open)

    def _with_prior(self, prior: float, over: float, under: float) -> float:
        levels = self._tuning.prior_levels
        return (prior * levels + over) / (levels + under)

    def observe_level(self, gained: float, mass: float) -> None:
        """A draft pass at home made the next pass worth so much more."""
        self._gained = self._tuning.level_fading * self._gained + gained
        self._open = self._tuning.level_fading * self._open + mass

    def observe_tree(self, depth: int, num_accepted: int) -> None:
        """So many drafts of a tree of this depth were accepted."""
        self._accepted = self._tuning.odds_fading * self._accepted + num_accepted
        self._offered = self._tuning.odds_fading * self._offered + min(depth, num_accepted + 1)

    def observe_pool(self, held: float, missed: float) -> None:
        """Of the tokens committed a pool had held some, where it had anything, and missed some."""
        self._held = self._tuning.odds_fading * self._held + held
        self._asked = self._tuning.odds_fading * self._asked + held + missed

    def observe_expansions(self, accepted: Sequence[bool]) -> None:
        """At which of a tree's expansions, in their order, a draw was accepted."""
        for k, hit in enumerate(accepted[:MAX_EXPANSIONS]):
            self._worth[k] += (1.0 - self._tuning.odds_fading) * (hit - self._worth[k])


class Rate:
    """Tokens a millisecond and request, over the last passes and the pauses between them."""

    def __init__(self, tuning: Tuning = TUNING) -> None:
        self._tuning = tuning
        self._tokens = self._ms = 0.0

    def observe(self, tokens: int, requests: int, ms: float) -> None:
        """A round ended, of so many requests: a pass, and what was waited for it."""
        self._tokens = self._tuning.rate_fading * self._tokens + tokens / max(1, requests)
        self._ms = self._tuning.rate_fading * self._ms + ms

    def tokens_per_ms(self, requests: int, plain_ms: float) -> float:
        """Of so many requests; before there is anything to go by, as by plain decoding."""
        passes = self._tuning.prior_passes
        prior_ms = passes * max(1e-3, plain_ms)
        return requests * (passes + self._tokens) / (prior_ms + self._ms)
