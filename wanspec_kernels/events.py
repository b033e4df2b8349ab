"""Events: what happens, as typed values.

Whoever wants to know subscribes: metrics, logs, benchmarks and tests. A subscriber is called where
the thing happens, on the thread of the one who made it happen, and must neither block nor raise,
nor call back whoever made it happen. Here is what drafters do; `engine/events.py` has what becomes
of requests and passes. An exchange and the scheduler over it tell the same subscribers.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from wanspec_kernels.drafts.outcome import Outcome
from wanspec_kernels.wire import Draft

logger = logging.getLogger(__name__)


class Event:
    """Something that happened; a frozen dataclass each."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Joined(Event):
    """A drafter greeted and was welcomed."""

    source: int
    name: str
    model: str


@dataclass(frozen=True, slots=True)
class Left(Event):
    """A drafter's session ended."""

    source: int
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class TurnedAway(Event):
    """Somebody knocked and was not let in."""

    who: str
    reason: str


@dataclass(frozen=True, slots=True)
class Quarantined(Event):
    """Nothing of this drafter is read for a while."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Asked(Event):
    """A drafter was sent OPEN for a request."""

    request: int
    source: int


@dataclass(frozen=True, slots=True)
class Released(Event):
    """A drafter is asked no more to draft for a request that goes on."""

    request: int
    source: int


@dataclass(frozen=True, slots=True)
class Offered(Event):
    """A remote drafter's draft was merged, or not."""

    source: int
    draft: Draft
    outcome: Outcome


class Events:
    """Those who want to know, in the order in which they said so."""

    def __init__(self) -> None:
        self._subscribers: list[Callable[[Event], None]] = []

    @property
    def wanted(self) -> bool:
        """Somebody wants to know. Where events are frequent, none is made for nobody."""
        return bool(self._subscribers)

    def subscribe(self, call: Callable[[Event], None]) -> Callable[[], None]:
        """Call it with every event from now on; returns how to end that."""
        self._subscribers.append(call)
        return lambda: self._subscribers.remove(call)

    def emit(self, event: Event) -> None:
        for call in list(self._subscribers):
            try:
                call(event)
            except Exception:  # Theirs is the fault, and it must not cost a request anything.
                logger.exception("a subscriber failed at %s", type(event).__name__)
