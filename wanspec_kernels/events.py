"""Events: what happens, as typed values.

Whoever wants to know subscribes: metrics, logs, benchmarks and tests. A subscriber is called where
the thing happens, on the thread of the one who made it happen, and must neither block nor raise.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from wanspec_kernels.drafts.outcome import Outcome

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Joined:
    """A drafter greeted and was welcomed."""

    source: int
    name: str
    model: str


@dataclass(frozen=True, slots=True)
class Left:
    """A drafter's session ended."""

    source: int
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """Somebody knocked and was not let in."""

    who: str
    reason: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Nothing of this drafter is read for a while."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A drafter was sent OPEN for a request."""

    request: int
    source: int


@dataclass(frozen=True, slots=True)
class Released:
    """A drafter is asked no more to draft for a request that goes on."""

    request: int
    source: int


@dataclass(frozen=True, slots=True)
class Offered:
    """A drafter's draft was merged, or not."""

    request: int
    source: int
    outcome: Outcome
    num_nodes: int
    base_length: int


Event: TypeAlias = Joined | Left | TurnedAway | Quarantined | Asked | Released | Offered


class Events:
    """Those who want to know, in the order in which they said so."""

    def __init__(self) -> None:
        self._subscribers: list[Callable[[Event], None]] = []

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
