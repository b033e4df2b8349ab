"""What a `Generation` wants done, or says, in answer to an event."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from wanspec_kernels.tree import HostTree
from wanspec_kernels.wire import Draft


@dataclass(frozen=True, slots=True)
class StartPass:
    tree: HostTree


@dataclass(frozen=True, slots=True)
class DraftAtHome:
    token_ids: tuple[int, ...]  # all that is committed
    passes: int
    known: Draft | None  # what is here already, to grow on


@dataclass(frozen=True, slots=True)
class Committed:
    token_ids: tuple[int, ...]
    sources: tuple[int | None, ...]  # of each token: who drafted it; None: the target's own


@dataclass(frozen=True, slots=True)
class Finished:
    reason: Literal["length", "stop"]


Action: TypeAlias = StartPass | DraftAtHome | Committed | Finished
