"""PassPlan: all that one pass of the target does, as one value on the host."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wanspec_kernels.tree import HostTree
from wanspec_kernels.wire.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Part:
    """One request's rows in a pass: text that the target has not read yet, and a tree below it.

    Row i of the part is written to slot ``context_len + i`` of the request's pages. Without a tree
    the part is a piece of a prompt, and nothing is decided.
    """

    request: int
    context_len: int  # slots that hold keys and values already
    prefix: tuple[int, ...]  # text from there on, but for the last committed token
    tree: HostTree | None  # Its root is the last committed token.
    pages: tuple[int, ...]  # of the request, in order of its slots
    sampling: Sampling
    num_logprobs: int | None = None  # None: log-probabilities are not wanted.
    bitmask: NDArray[np.int32] | None = None  # as of `Grammar`

    def __post_init__(self) -> None:
        if not self.num_rows:
            raise ValueError(f"request {self.request}: expected rows in its part of the pass")
        if self.bitmask is not None and len(self.bitmask) != self.num_logits:
            raise ValueError(
                f"request {self.request}, bitmask: expected {self.num_logits} rows, got "
                f"{len(self.bitmask)}"
            )

    @property
    def num_rows(self) -> int:
        return len(self.prefix) + self.num_logits

    @property
    def num_logits(self) -> int:
        """Rows whose logits are needed: the tree's."""
        return 0 if self.tree is None else len(self.tree.token_ids)


@dataclass(frozen=True, slots=True)
class PassPlan:
    parts: tuple[Part, ...]

    @property
    def num_rows(self) -> int:
        return sum(part.num_rows for part in self.parts)


@dataclass(frozen=True, slots=True)
class LogProbs:
    """Natural logarithms of the target's probabilities, before temperature and filters."""

    chosen: float  # of the token that was committed
    top_ids: tuple[int, ...]  # the likeliest tokens, falling
    top: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the target says of one part that had a tree."""

    request: int
    token_ids: tuple[int, ...]  # accepted drafts, then one token more, unless `is_invalid`
    accepted_nodes: tuple[int, ...]  # of the tree, from the root down
    logprobs: tuple[LogProbs, ...] = ()  # of each token, if wanted
    is_invalid: bool = False  # The logits below the accepted drafts were no numbers.
