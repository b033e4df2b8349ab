"""Policy: what a decision sees and what it may be. The policies themselves are in `policies`."""

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from wanspec_kernels.drafts.replies import Arrival

__all__ = ["Arrival"]

MIN_WAIT_MS = 0.1  # shorter ones could follow each other without end, for want of digits
MAX_WAIT_MS = 1000.0  # a round, whatever a clock that jumps says of pass times


@dataclass(frozen=True, slots=True)
class View:
    """All that a decision rests on. Times are in ms."""

    now_ms: float
    idle_ms: float  # since the last pass ended
    waited_ms: float  # of those, spent waiting
    verifying: bool  # the target is at work; what is drafted at home is for its next pass
    left_ms: float  # of the pass under way, by estimate
    expected_tokens: float  # of the tree that would be verified now, or is
    open_mass: float  # probability that the path leaves it where nothing is known further down
    entropy_bits: float  # the highest along its likeliest path
    depth: int  # of the tree
    home_depth: int  # of the home drafter's part of it
    max_depth: int  # that is of any use
    coverage: float  # probability that one level more holds the path's next token
    target_pass_ms: float
    home_pass_ms: float
    tokens_per_ms: float  # over the last rounds
    home_passes: int | None  # since the last commit; None: there is no drafter at home
    home_is_busy: bool  # with a draft asked for earlier
    home_passes_per_token: float = 0.0  # over the last rounds
    behind_ms: float = 0.0  # co-located speculation, by estimate; negative: ahead of it
    remote_worth: float = 1.0  # the speed that remotes alone would give, over that of the same
    reply_ms: float | None = None  # of the nearest remote heard lately; None: there is none
    arrivals: tuple[Arrival, ...] = ()


@dataclass(frozen=True, slots=True)
class Verify:
    pass


@dataclass(frozen=True, slots=True)
class Wait:
    until_ms: float  # or until a draft comes


@dataclass(frozen=True, slots=True)
class DraftAtHome:
    passes: int


Decision: TypeAlias = Verify | Wait | DraftAtHome


class Policy(Protocol):
    """Asked when the target falls free, when a draft comes, and when a home draft ends.

    While the target is at work, `Verify` and `Wait` both mean that nothing is drafted at home; and
    where the home drafter is busy, `DraftAtHome` means that its answer is awaited.

    No answer holds a request up: it is verified after `MAX_WAIT_MS` of a round's waits, after
    `home_work.MAX_PASSES` at home, where nobody is at home, and instead of a wait that is shorter
    than `MIN_WAIT_MS` or lies in the past.
    """

    def decide(self, view: View) -> Decision: ...
