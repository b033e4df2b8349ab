"""Outcome: what became of a draft that was offered."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What became of a draft; each has exactly one."""

    NEW = "new"  # hangs from the committed text and adds to the pool
    LATE = "late"  # hangs from an older base, and something of it still adds to the pool
    DUPLICATE = "duplicate"  # all of it is here already
    STALE = "stale"  # nothing of it hangs below the committed text
    EARLY = "early"  # its base is newer than the committed text; held until that commit
    FOREIGN = "foreign"  # of another request, or its base is not this text
    INVALID = "invalid"  # what no honest drafter sends


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: Kind
    new_nodes: int = 0
    dropped_nodes: int = 0  # past a bound or the vocabulary
    reason: str = ""
    new_claims: int = 0  # nodes that this source had not drafted before, new or not
