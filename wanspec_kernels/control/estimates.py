"""Estimates: what decisions need to know of the machines and models at hand."""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from wanspec_kernels.drafts.sources import Sources

# What took longer, in target passes, is no pace but a pause: a clock jumped, a process stood still.
MAX_ROUND_PASSES = 4.0
SERVED_FADING = 0.95  # a target pass
HOME_PATIENCE_PASSES = 2.0  # of the target, for one at home: what takes half as long pays nothing
FEW_HOME_SAMPLES = 4
# How often home is right where a remote was wrong, before that was seen. When this was 0.2, a liar
# that was right half the time kept home from drafting, and so from showing it: 1.26 times the time.
PRIOR_RESCUE, PRIOR_MISSES = 0.5, 2.0


@dataclass(slots=True)
class FadingRatio:
    """Of two sums that fade together."""

    _over: float = 0.0
    _under: float = 0.0

    def observe(self, over: float, under: float, fading: float) -> None:
        self._over = fading * self._over + over
        self._under = fading * self._under + under

    def after(self, over: float, under: float) -> float:
        """With a prior's sums, which do not fade."""
        return (over + self._over) / (under + self._under)


@dataclass(slots=True)
class Estimates:
    """Learnt while decoding, shared by a verifier's requests.

    Pass times are lower quartiles, as a pause only ever adds to one; the first home draft of all is
    no sample, as a GPU compiles and warms up in it. Acceptance and coverage are fading counts that
    return to their priors, and home passes found too slow are forgotten in time: what was once
    useless is tried again, at a bounded cost.
    """

    prior_acceptance: float = 0.7
    prior_coverage: float = 0.85
    prior_levels: float = 8.0
    fading: float = 0.98  # a target pass
    target_ms: deque[float] = field(default_factory=lambda: deque(maxlen=15))
    home_ms: deque[float] = field(default_factory=lambda: deque(maxlen=15))  # a draft pass
    home_retry: float = 50.0  # a sample is forgotten after so many times its own duration,
    first_home_retry: float = 5.0  # the first few sooner, each time twice as late as before
    sources: Sources = field(default_factory=Sources)
    _home_sure_ms: deque[float] = field(default_factory=lambda: deque(maxlen=15))
    _last_home_ms: float | None = None
    _home_is_pure: bool = False  # all samples are of drafts that read nothing
    _since_home_ms: float = 0.0  # of target passes
    _home_retries: int = 0  # since there were many samples
    _acceptance: FadingRatio = field(default_factory=FadingRatio)
    _coverage: FadingRatio = field(default_factory=FadingRatio)
    _round_tokens: float = 0.0
    _round_ms: float = 0.0
    _round_passes: float = 0.0
    _home_rescue: FadingRatio = field(default_factory=FadingRatio)
    _served: FadingRatio = field(default_factory=FadingRatio)  # tokens a ms
    _raced: FadingRatio = field(default_factory=FadingRatio)

    @property
    def target_pass_ms(self) -> float:
        return _lower_quartile(self.target_ms) if self.target_ms else 30.0

    @property
    def home_pass_ms(self) -> float:
        return _lower_quartile(self.home_ms) if self.home_ms else 0.125 * self.target_pass_ms

    @property
    def acceptance(self) -> float:
        """Of a level of a verified tree, given the level above."""
        return self._acceptance.after(self.prior_acceptance * self.prior_levels, self.prior_levels)

    @property
    def coverage(self) -> float:
        """Probability that a level of the pool holds the path's token, given the level above."""
        return self._coverage.after(self.prior_coverage * self.prior_levels, self.prior_levels)

    @property
    def tokens_per_ms(self) -> float:
        prior_ms = 4 * 1.3 * self.target_pass_ms  # four rounds of co-located speculation
        return (16.0 + self._round_tokens) / max(1e-3, prior_ms + self._round_ms)

    @property
    def home_patience_ms(self) -> float:
        """How long one draft pass at home is waited for."""
        return HOME_PATIENCE_PASSES * self.target_pass_ms

    def round_ms(self, ms: float) -> float:
        """As much of a round's time as was no pause."""
        return min(ms, MAX_ROUND_PASSES * self.target_pass_ms)

    def observe_pass(self, duration_ms: float, depth: int, num_accepted: int) -> None:
        """A target pass over a tree of this depth ended."""
        self.target_ms.append(duration_ms)
        self.sources.round_ms = self.target_pass_ms
        self._since_home_ms += duration_ms
        if self.home_ms and self._since_home_ms > self._home_retry_factor * self._home_sure_ms[0]:
            self.home_ms.popleft()
            self._home_sure_ms.popleft()
            self._since_home_ms = 0.0
            self._home_is_pure &= bool(self.home_ms)
            self._home_retries += 1
        self._acceptance.observe(num_accepted, min(depth, num_accepted + 1), self.fading)

    @property
    def home_passes_per_token(self) -> float:
        return self._round_passes / max(1.0, self._round_tokens)

    def observe_round(
        self, tokens: int, ms: float, followed: float, left: float, home_passes: int = 0
    ) -> None:
        """Of the round's tokens the pool had followed some and not had others."""
        self._round_passes = self.fading * self._round_passes + home_passes
        self._round_tokens = self.fading * self._round_tokens + tokens
        self._round_ms = self.fading * self._round_ms + ms
        self._coverage.observe(followed, followed + left, self.fading)

    @property
    def home_rescue(self) -> float:
        """Probability that home holds a token that remotes drafted beside."""
        return self._home_rescue.after(PRIOR_RESCUE * PRIOR_MISSES, PRIOR_MISSES)

    def observe_missed(self, rescued: Sequence[bool]) -> None:
        """Of tokens that remotes drafted beside, and where home had drafted too: was it right?"""
        for right in rescued:
            self._home_rescue.observe(right, 1, self.fading)

    @property
    def remote_worth(self) -> float:
        """The speed that remotes alone would give, over that of co-located speculation."""
        prior_ms = max(1e-3, self.target_pass_ms)
        prior_tokens = prior_ms * self.tokens_per_ms  # of one pass, at which they are level
        return self._served.after(prior_tokens, prior_ms) / self._raced.after(
            prior_tokens, prior_ms
        )

    def observe_served(self, tokens: int, ms: float, raced_tokens: int, raced_ms: float) -> None:
        """What a round would have brought without home; what it brought, and the rival's time."""
        self._served.observe(tokens, ms, SERVED_FADING)
        self._raced.observe(raced_tokens, raced_ms, SERVED_FADING)

    @property
    def _home_retry_factor(self) -> float:
        if len(self.home_ms) >= FEW_HOME_SAMPLES:
            return self.home_retry
        return float(min(self.home_retry, self.first_home_retry * 2**self._home_retries))

    def observe_home(self, duration_ms: float, passes: int, *, reads: bool = False) -> None:
        """A home draft; one that `reads` took in new text first, in about one pass more."""
        pass_ms = min(duration_ms / (passes + reads), self.home_patience_ms)
        if self._last_home_ms is not None and not (reads and self._home_is_pure):
            if not reads and not self._home_is_pure:
                self.home_ms.clear()
                self._home_sure_ms.clear()
                self._home_is_pure = True
            self.home_ms.append(pass_ms)
            # Twice slow is slow; once, it may have been a pause.
            self._home_sure_ms.append(min(pass_ms, self._last_home_ms))
            self._since_home_ms = 0.0
        self._last_home_ms = pass_ms
        if len(self.home_ms) >= FEW_HOME_SAMPLES:
            self._home_retries = 0


def _lower_quartile(times_ms: Collection[float]) -> float:
    return sorted(times_ms)[len(times_ms) // 4]
