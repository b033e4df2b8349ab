"""Rival: co-located speculation on the text as it turns out, to be no slower than."""

from collections.abc import Sequence
from math import log

from wanspec_kernels.control.estimates import Estimates
from wanspec_kernels.drafts.pool import Pool
from wanspec_kernels.drafts.selection import Selection

ROUNDS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20)  # draft passes at home a target pass
# A best-first tree comes to a branch the later, the less likely it is beside its best sibling: so
# many passes for each factor e. Fitted to the simulator's best trees, on three traces.
DETOUR_PASSES = 2.6

# Target passes that a request may be ahead of its rival, and behind, and count on it.
CREDIT_PASSES = 6.0
DEBT_PASSES = 8.0


class Rival:
    """Fixed rounds of draft passes and a target pass, of each of the depths `ROUNDS`.

    It meets the same text, so what was easy or hard of it was so for both. Rounds of no passes are
    plain decoding. A round under way is charged as its tokens are of those that it may bring.
    """

    def __init__(self) -> None:
        self._ended_ms = [0.0] * len(ROUNDS)
        self._levels = [0] * len(ROUNDS)  # of the round under way
        self._passes = [0.0] * len(ROUNDS)  # that these took
        self._chance = 0.0

    def holds(self, probability: float) -> bool:
        """Whether a draft that was never made would have held a token: in that many cases."""
        self._chance += probability
        held = self._chance >= 1.0
        self._chance -= held
        return held

    def follow(self, shares: Sequence[float], target_pass_ms: float, home_pass_ms: float) -> float:
        """By how many ms the best of the rounds go on for tokens that are committed.

        `shares` has each one's probability, as drafted, over that of its likeliest sibling; 0 where
        no draft held it.
        """
        costs = [target_pass_ms + passes * home_pass_ms for passes in ROUNDS]
        before_ms = self._best_ms(costs)
        for share in shares:
            for i, passes in enumerate(ROUNDS):
                if share > 0 and self._passes[i] < passes:
                    self._levels[i] += 1
                    self._passes[i] += 1.0 - DETOUR_PASSES * log(share)
                else:  # the target's own token ends a round
                    self._ended_ms[i] += costs[i]
                    self._levels[i], self._passes[i] = 0, 0.0
        return self._best_ms(costs) - before_ms

    def _best_ms(self, costs: Sequence[float]) -> float:
        return min(
            ended_ms + cost * levels / (passes + 1)
            for ended_ms, cost, levels, passes in zip(
                self._ended_ms, costs, self._levels, ROUNDS, strict=True
            )
        )


class Race:
    """One request against its rival, a round at a time."""

    def __init__(self, estimates: Estimates) -> None:
        self.behind_ms = 0.0  # negative: ahead
        self._rival = Rival()
        self._estimates = estimates

    def round_ends(
        self,
        pool: Pool,
        verified: Selection,
        accepted_nodes: Sequence[int],
        committed: Sequence[int],
        ms: float,
    ) -> float:
        """A round of so many ms is about to commit tokens to the pool; returns the rival's ms."""
        e = self._estimates
        shares = self._shares(pool, verified, accepted_nodes, committed)
        pass_ms = e.target_pass_ms
        rival_ms = self._rival.follow(shares, pass_ms, e.home_pass_ms)
        behind_ms = self.behind_ms + ms - rival_ms
        self.behind_ms = min(max(behind_ms, -CREDIT_PASSES * pass_ms), DEBT_PASSES * pass_ms)
        return rival_ms

    def _shares(
        self,
        pool: Pool,
        verified: Selection,
        accepted_nodes: Sequence[int],
        committed: Sequence[int],
    ) -> list[float]:
        """As `Rival.follow` takes them, of what home would have drafted."""
        missed = pool.missed(committed)
        self._estimates.observe_missed([by_home for by_home in missed if by_home is not None])
        shares = [verified.share_of(node) for node in accepted_nodes[: len(committed)]]
        if len(committed) == len(shares):
            return shares
        # The last one is the target's own.
        depth, is_open, _ = pool.follow(committed)
        if depth == len(committed):  # its draft has come meanwhile, or had no row
            held = verified.openness[accepted_nodes[-1] if accepted_nodes else 0] >= 0.5
        elif is_open:
            held = self._rival.holds(self._estimates.acceptance)
        else:  # remotes had others there, or home
            held = missed[-1:] == [None] and self._rival.holds(self._estimates.home_rescue)
        return [*shares, float(held)]
