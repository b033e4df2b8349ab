"""Worth: what one source has proved its drafts to be worth, by which they have a say."""

from collections.abc import Sequence
from typing import NamedTuple

from wanspec_kernels.drafts.pool_node import HOME
from wanspec_kernels.wire.confidence import MAX_PROBABILITY, UNKNOWN, Calibration

UNKNOWN_PROBABILITY = 0.5  # of a child of which its source says nothing, before siblings share it
UNKNOWN_WEIGHT = 4.0  # such children, right as often as that, before the first that is decided

# A source is either what its record says or of no use, and one of no use is right this often.
CHANCE = 0.1
NEWCOMER = 0.3  # probability that one of which nothing is known is of use
LEAST_TRUST, MOST_TRUST = 1e-4, 0.999  # so one that changes is found out in a few tokens
MAX_SURE = 0.9  # a token missed is never such a surprise that it outweighs more than one hit
MAX_EVIDENCE = 10.0  # for a source, of one token

FADING = 0.98  # of how often it is right, for each token decided where it had drafted
PRIOR_RIGHT, PRIOR_DECIDED = 0.85, 8.0

LEVELS = 2  # that a source is right at, one after another, beside home

TRUSTED = 0.5  # a source with less credit is neither waited for nor left to serve


class Worth:
    """Learns at each commit what a source's codes are worth, and whether they still are.

    What a code turned out to be worth (`calibration`) is right in the long run, and slow to see
    that a drafter has begun to lie. `trust` is quick: the probability, by Bayes' rule, that the
    source is what its record says and not one that is right by chance. A newcomer has little of it
    and earns it by the first tokens that it had right. What a row is believed to be worth is what
    its code is worth, times the trust in its source.
    """

    def __init__(self, *, is_home: bool = False) -> None:
        self.calibration = Calibration()
        self.trust = 1.0 if is_home else NEWCOMER
        self._is_home = is_home
        self._believed: Sequence[float] | None = None
        self._unknown_hits = self._unknown_claimed = UNKNOWN_WEIGHT
        self._right = self._decided = 0.0

    @property
    def believed(self) -> Sequence[float]:
        """The probability of each code, were the source beyond doubt."""
        if self._believed is None:
            factor = self._unknown_hits / self._unknown_claimed
            of_unknown = min(MAX_PROBABILITY, UNKNOWN_PROBABILITY * factor)
            self._believed = [*self.calibration.table[:UNKNOWN], of_unknown]
        return self._believed

    @property
    def right(self) -> float:
        """How often the source holds the token where it has drafted any."""
        return (PRIOR_RIGHT * PRIOR_DECIDED + self._right) / (PRIOR_DECIDED + self._decided)

    def observe(self, codes: Sequence[int], hit: int | None) -> None:
        """A token was decided where it had these codes; `hit` is that of the right one, if any."""
        if not self._is_home:
            self._doubt(codes, hit)
        self._right = FADING * self._right + (hit is not None)
        self._decided = FADING * self._decided + 1.0
        known = [code for code in codes if code != UNKNOWN]
        if known:
            self.calibration.observe(known, None if hit == UNKNOWN else hit)
        if len(known) < len(codes):
            share = min(UNKNOWN_PROBABILITY, 1.0 / len(codes))
            self._unknown_claimed = FADING * self._unknown_claimed + share * (
                len(codes) - len(known)
            )
            self._unknown_hits = FADING * self._unknown_hits + (hit == UNKNOWN)
        self._believed = None

    def _doubt(self, codes: Sequence[int], hit: int | None) -> None:
        believed = self.believed
        total = sum([believed[code] for code in codes])
        if hit is None:
            evidence = (1.0 - min(MAX_SURE, total)) / (1.0 - CHANCE)
        else:
            share = believed[hit] / max(1.0, total)
            evidence = min(MAX_EVIDENCE, share * len(codes) / CHANCE)
        odds = evidence * self.trust / (1.0 - self.trust)
        self.trust = min(max(odds / (1.0 + odds), LEAST_TRUST), MOST_TRUST)


class Believed(NamedTuple):
    """What is made of what one source says."""

    table: Sequence[float]  # the probability of each of its codes, were it beyond doubt
    trust: float  # the probability that it is what its record says
    credit: float  # how far what it has drafted counts as drafted, beside what home drafts


class Worths:
    """Of all sources, by number; shared by a verifier's requests."""

    def __init__(self) -> None:
        self._of: dict[int, Worth] = {}

    def of(self, source: int) -> Worth:
        if source not in self._of:
            self._of[source] = Worth(is_home=source == HOME)
        return self._of[source]

    def retire(self, source: int) -> None:
        self._of.pop(source, None)

    def credit(self, source: int) -> float:
        """By trust, and by how often it is right beside how often home is."""
        worth = self.of(source)
        if source == HOME:
            return 1.0
        return worth.trust * min(1.0, worth.right / self.of(HOME).right) ** LEVELS

    def believed(self, source: int) -> Believed:
        worth = self.of(source)
        return Believed(worth.believed, worth.trust, self.credit(source))
