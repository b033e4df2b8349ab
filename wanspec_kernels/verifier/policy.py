"""Policy: when the target falls free, verify what is here, wait for it, or draft at home."""

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import TypeAlias

MIN_ROUND_MS = 1e-3  # a clock may be too coarse to see a pass
MIN_WAIT_MS = 0.1  # shorter ones could follow each other without end, for want of digits


@dataclass(frozen=True, slots=True)
class View:
    """All that a decision rests on. Times are in ms, `expected_ms` on the clock of `now_ms`."""

    now_ms: float
    idle_ms: float  # since the last pass ended
    waited_ms: float  # of those, spent waiting
    depth: int  # of the tree that would be verified now
    home_depth: int  # of the home drafter's part of it
    max_depth: int  # that is of any use
    acceptance: float  # of a level, given the level above
    target_pass_ms: float
    home_pass_ms: float
    home_passes: int | None  # since the last commit; None: there is no drafter at home
    expected_ms: tuple[float, ...] = ()  # when sources that know the last commit should be heard


@dataclass(frozen=True, slots=True)
class Verify:
    pass


@dataclass(frozen=True, slots=True)
class Wait:
    until_ms: float


@dataclass(frozen=True, slots=True)
class DraftAtHome:
    passes: int


Decision: TypeAlias = Verify | Wait | DraftAtHome


@dataclass(frozen=True, slots=True)
class Policy:
    """Takes what gives this round the most tokens a millisecond.

    A round lasts from one target pass's end to the next one's. With acceptance a, a tree of depth d
    is expected to bring ``1 + a + ... + a**d`` tokens; verifying now costs the idle time so far and
    one target pass; a home pass adds its own time and at most one level; waiting adds its time and
    one level. At 30 ms a target pass, 4 ms a home pass and a = 0.8 this drafts five levels at home
    when nothing is here, and none once two levels from elsewhere are.

    Nothing is ever stuck: waits add up to at most `max_wait_fraction` of a target pass a round, a
    source that is overdue is not waited for, home passes a round are bounded, and what remains is
    to verify.
    """

    max_wait_fraction: float = 0.1
    min_depth: int = 2  # a tree as deep as this is not kept waiting
    max_home_passes: int = 8  # a round
    home_burst: int = 2  # passes before looking again at what has arrived

    def decide(self, view: View) -> Decision:
        spent_ms = max(MIN_ROUND_MS, view.idle_ms + view.target_pass_ms)

        def rate(depth: int, more_ms: float) -> float:
            return _expected_tokens(view.acceptance, min(depth, view.max_depth)) / (
                spent_ms + more_ms
            )

        best = rate(view.depth, 0.0)
        decision: Decision = Verify()
        wait_ms = self._useful_wait_ms(view)
        if wait_ms is not None and rate(view.depth + 1, wait_ms) > best:
            best = rate(view.depth + 1, wait_ms)
            decision = Wait(view.now_ms + wait_ms)
        if view.home_passes is not None:
            for passes in range(1, self.max_home_passes - view.home_passes + 1):
                depth = max(view.depth, view.home_depth + passes)
                home_rate = rate(depth, passes * view.home_pass_ms)
                if home_rate > best:
                    best, decision = home_rate, DraftAtHome(min(passes, self.home_burst))
        return decision

    def _useful_wait_ms(self, view: View) -> float | None:
        if view.depth >= self.min_depth:
            return None
        left_ms = self.max_wait_fraction * view.target_pass_ms - view.waited_ms
        waits = (t - view.now_ms for t in view.expected_ms)
        return min((w for w in waits if MIN_WAIT_MS <= w <= left_ms), default=None)


@dataclass(slots=True)
class Estimates:
    """What decisions need to know of the machines and models at hand, learnt while decoding.

    Pass times are medians, so that one slow pass changes nothing; the first home draft of all is no
    sample, as a GPU compiles and warms up in it. The acceptance of a level is a fading count that
    returns to its prior, and home passes found too slow are forgotten in time: what was once
    useless is tried again, at a bounded cost.
    """

    prior_acceptance: float = 0.7
    prior_levels: float = 8.0
    fading: float = 0.98  # a target pass
    target_ms: deque[float] = field(default_factory=lambda: deque(maxlen=15))
    home_ms: deque[float] = field(default_factory=lambda: deque(maxlen=15))  # a draft pass
    home_retry: float = 50.0  # a sample is forgotten after so many times its own duration
    _home_is_warm: bool = False
    _since_home_ms: float = 0.0  # of target passes
    _tried: float = 0.0
    _accepted: float = 0.0

    @property
    def target_pass_ms(self) -> float:
        return median(self.target_ms) if self.target_ms else 30.0

    @property
    def home_pass_ms(self) -> float:
        return median(self.home_ms) if self.home_ms else 0.125 * self.target_pass_ms

    @property
    def acceptance(self) -> float:
        prior = self.prior_acceptance * self.prior_levels
        return (prior + self._accepted) / (self.prior_levels + self._tried)

    def observe_pass(self, duration_ms: float, depth: int, num_accepted: int) -> None:
        """A target pass over a tree of this depth ended."""
        self.target_ms.append(duration_ms)
        self._since_home_ms += duration_ms
        if self.home_ms and self._since_home_ms > self.home_retry * self.home_ms[0]:
            self.home_ms.popleft()
            self._since_home_ms = 0.0
        self._tried = self.fading * self._tried + min(depth, num_accepted + 1)
        self._accepted = self.fading * self._accepted + num_accepted

    def observe_home(self, duration_ms: float, passes: int) -> None:
        if self._home_is_warm:
            self.home_ms.append(duration_ms / passes)
        self._home_is_warm = True
        self._since_home_ms = 0.0


def _expected_tokens(acceptance: float, depth: int) -> float:
    return sum(acceptance**level for level in range(depth + 1))
