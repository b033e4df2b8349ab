"""Estimates: what decisions need to know of the machines and models at hand."""

from collections import deque
from dataclasses import dataclass, field
from statistics import median_low

from wanspec_kernels.confidence import Calibration
from wanspec_kernels.verifier.usefulness import Usefulness

CO_LOCATED_PASSES = 16
CO_LOCATED_ERROR = 0.05
# What took longer, in target passes, is no pace but a pause: a clock jumped, a process stood still.
MAX_ROUND_PASSES = 4.0
MAX_REPLY_GROWTH = 4.0  # of a reply over those before


@dataclass(slots=True)
class Pace:
    """When one remote drafter is heard: smoothed means and deviations, in ms."""

    reply_ms: float | None = None  # from a commit to the first draft that knows of it
    reply_deviation_ms: float = 0.0
    every_ms: float = 4.0  # between two additions
    heard_ms: float | None = None  # last

    def replied(self, after_ms: float) -> None:
        if self.reply_ms is None:
            self.reply_ms = after_ms
            return
        error = min(after_ms, MAX_REPLY_GROWTH * max(1.0, self.reply_ms)) - self.reply_ms
        self.reply_ms += 0.25 * error
        self.reply_deviation_ms += 0.25 * (abs(error) - self.reply_deviation_ms)

    def heard(self, now: float, max_gap_ms: float) -> None:
        """An addition came; a gap longer than `max_gap_ms` is no pace but a pause."""
        if self.heard_ms is not None and now - self.heard_ms < max_gap_ms:
            self.every_ms += 0.1 * (now - self.heard_ms - self.every_ms)
        self.heard_ms = now


@dataclass(slots=True)
class Estimates:
    """Learnt while decoding, shared by a verifier's requests.

    Pass times are medians, so that one slow pass changes nothing; the first home draft of all is no
    sample, as a GPU compiles and warms up in it. Acceptance and coverage are fading counts that
    return to their priors, and home passes found too slow are forgotten in time: what was once
    useless is tried again, at a bounded cost.
    """

    prior_acceptance: float = 0.7
    prior_coverage: float = 0.85
    prior_levels: float = 8.0
    fading: float = 0.98  # a target pass
    target_ms: deque[float] = field(default_factory=lambda: deque(maxlen=15))
    home_ms: deque[float] = field(default_factory=lambda: deque(maxlen=15))  # a draft pass
    home_retry: float = 50.0  # a sample is forgotten after so many times its own duration
    calibrations: dict[int, Calibration] = field(default_factory=dict)  # by source
    paces: dict[int, Pace] = field(default_factory=dict)  # by source
    usefulness: Usefulness = field(default_factory=Usefulness)
    _home_sure_ms: deque[float] = field(default_factory=lambda: deque(maxlen=15))
    _last_home_ms: float | None = None
    _since_home_ms: float = 0.0  # of target passes
    _tried: float = 0.0
    _accepted: float = 0.0
    _followed: float = 0.0
    _decided: float = 0.0
    _round_tokens: float = 0.0
    _round_ms: float = 0.0
    _round_passes: float = 0.0

    @property
    def target_pass_ms(self) -> float:
        return median_low(self.target_ms) if self.target_ms else 30.0

    @property
    def home_pass_ms(self) -> float:
        return median_low(self.home_ms) if self.home_ms else 0.125 * self.target_pass_ms

    @property
    def acceptance(self) -> float:
        """Of a level of a verified tree, given the level above."""
        prior = self.prior_acceptance * self.prior_levels
        return (prior + self._accepted) / (self.prior_levels + self._tried)

    @property
    def coverage(self) -> float:
        """Probability that a level of the pool holds the path's token, given the level above."""
        prior = self.prior_coverage * self.prior_levels
        return (prior + self._followed) / (self.prior_levels + self._decided)

    @property
    def tokens_per_ms(self) -> float:
        prior_ms = 4 * 1.3 * self.target_pass_ms  # four rounds of co-located speculation
        return (16.0 + self._round_tokens) / max(1e-3, prior_ms + self._round_ms)

    @property
    def co_located_tokens_per_ms(self) -> float:
        """What fixed rounds of home passes and a target pass would bring, at their best.

        Levels are accepted as those of late were. Less `CO_LOCATED_ERROR`, as an estimate that errs
        the other way has home work for nothing.
        """
        best = tokens = 0.0
        ms, level = self.target_pass_ms, 1.0
        for _ in range(CO_LOCATED_PASSES + 1):
            tokens += level
            best = max(best, tokens / ms)
            level *= self.acceptance
            ms += self.home_pass_ms
        return (1.0 - CO_LOCATED_ERROR) * best

    def pace(self, source: int) -> Pace:
        return self.paces.setdefault(source, Pace())

    def observe_pass(self, duration_ms: float, depth: int, num_accepted: int) -> None:
        """A target pass over a tree of this depth ended."""
        self.target_ms.append(duration_ms)
        self._since_home_ms += duration_ms
        if self.home_ms and self._since_home_ms > self.home_retry * self._home_sure_ms[0]:
            self.home_ms.popleft()
            self._home_sure_ms.popleft()
            self._since_home_ms = 0.0
        self._tried = self.fading * self._tried + min(depth, num_accepted + 1)
        self._accepted = self.fading * self._accepted + num_accepted

    @property
    def home_passes_per_token(self) -> float:
        return self._round_passes / max(1.0, self._round_tokens)

    def observe_round(
        self, tokens: int, ms: float, followed: int, left: int, home_passes: int = 0
    ) -> None:
        """Of the round's tokens the pool had followed some and not had others."""
        ms = min(ms, MAX_ROUND_PASSES * self.target_pass_ms)
        self._round_passes = self.fading * self._round_passes + home_passes
        self._round_tokens = self.fading * self._round_tokens + tokens
        self._round_ms = self.fading * self._round_ms + ms
        self._followed = self.fading * self._followed + followed
        self._decided = self.fading * self._decided + followed + left

    def observe_home(self, duration_ms: float, passes: int) -> None:
        pass_ms = duration_ms / passes
        if self._last_home_ms is not None:
            self.home_ms.append(pass_ms)
            # Twice slow is slow; once, it may have been a pause.
            self._home_sure_ms.append(min(pass_ms, self._last_home_ms))
        self._last_home_ms = pass_ms
        self._since_home_ms = 0.0
