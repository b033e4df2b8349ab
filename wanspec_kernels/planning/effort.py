"""Effort: how much a study simulates, in the time that it is given."""

from dataclasses import dataclass

MIN_TOKENS, MAX_TOKENS = 100, 500  # of a run
MIN_SEEDS, USUAL_SEEDS, MAX_SEEDS = 4, 8, 32
MIN_SCREEN_TOKENS, MAX_SCREEN_TOKENS = 40, 250
SCREEN_SHARE = 0.4  # of the time: finalists are what the result is made of


@dataclass(frozen=True, slots=True)
class Effort:
    """What is asked of a study; a number that is None follows from `seconds`.

    `workers` runs go on at a time.
    """

    seconds: float = 60.0
    tokens: int | None = None  # of a finalist's run
    seeds: int | None = None  # runs of each finalist
    workers: int = 1

    def screen_tokens(self, cost_s: float) -> int:
        """Tokens of a run that narrows candidates down; `cost_s` is one token of them all."""
        if self.tokens is not None:
            return max(1, self.tokens // 2)
        affordable = SCREEN_SHARE * self.seconds * self.workers / cost_s
        return int(min(max(affordable, MIN_SCREEN_TOKENS), MAX_SCREEN_TOKENS))

    def finals(self, left_s: float, cost_s: float) -> tuple[int, int]:
        """Tokens and seeds of the finalists; `cost_s` is one token of them all, with one seed."""
        affordable = max(0.0, left_s) * self.workers / cost_s  # tokens times seeds
        tokens = self.tokens
        if tokens is None:
            each = affordable / (self.seeds or USUAL_SEEDS)
            tokens = int(min(max(each, MIN_TOKENS), MAX_TOKENS))
        return tokens, self.seeds or int(min(max(affordable / tokens, MIN_SEEDS), MAX_SEEDS))
