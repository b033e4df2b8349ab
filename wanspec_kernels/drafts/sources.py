"""Sources: what is known of who drafts, over all requests: pace, worth and usefulness."""

from dataclasses import dataclass, field

from wanspec_kernels.drafts.usefulness import Usefulness
from wanspec_kernels.drafts.worth import TRUSTED, Worths

MAX_REPLY_GROWTH = 4.0  # of a reply over those before
FIRST_ROUND_MS = 30.0  # until one was seen


@dataclass(slots=True)
class Pace:
    """When one remote drafter is heard: smoothed means and deviations, in ms."""

    reply_ms: float | None = None  # from a commit to the first draft that knows of it
    reply_deviation_ms: float = 0.0
    every_ms: float = 4.0  # between two additions to a request's tree
    heard_ms: float | None = None  # last

    def replied(self, after_ms: float) -> None:
        if self.reply_ms is None:
            self.reply_ms = after_ms
            return
        error = min(after_ms, MAX_REPLY_GROWTH * max(1.0, self.reply_ms)) - self.reply_ms
        self.reply_ms += 0.25 * error
        self.reply_deviation_ms += 0.25 * (abs(error) - self.reply_deviation_ms)

    def heard(self, now: float, before_ms: float | None, max_gap_ms: float) -> None:
        """An addition came, after one to the same tree; a gap past `max_gap_ms` was a pause."""
        if before_ms is not None and now - before_ms < max_gap_ms:
            self.every_ms += 0.1 * (now - before_ms - self.every_ms)
        self.heard_ms = now


@dataclass(slots=True)
class Sources:
    """By the source's number. One that leaves is forgotten."""

    worths: Worths = field(default_factory=Worths)
    usefulness: Usefulness = field(default_factory=Usefulness)
    paces: dict[int, Pace] = field(default_factory=dict)
    round_ms: float = FIRST_ROUND_MS  # from one target pass to the next, for who has a clock of it

    def counts(self, source: int) -> bool:
        """Whether a remote may be waited for, and left to serve."""
        return self.worths.credit(source) >= TRUSTED

    def pace(self, source: int) -> Pace:
        return self.paces.setdefault(source, Pace())

    def enrol(self, source: int, round_trip_ms: float | None) -> None:
        """It was asked to draft; a round trip is the first guess of its reply."""
        self.usefulness.enrol(source)
        pace = self.pace(source)
        if round_trip_ms is not None and pace.reply_ms is None:
            pace.reply_ms = round_trip_ms

    def retire(self, source: int) -> None:
        """It has gone."""
        self.usefulness.retire(source)
        self.paces.pop(source, None)
        self.worths.retire(source)
