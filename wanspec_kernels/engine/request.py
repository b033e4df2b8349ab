"""Request: what is asked of the target, and how large its trees may get."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wanspec_kernels.tree import HostTree
from wanspec_kernels.wire.sampling import Sampling

MAX_LOGPROBS = 64


class Grammar(Protocol):
    """What may follow a text. A function of the text alone, whatever was asked before."""

    def bitmask(self, output_ids: Sequence[int], tree: HostTree) -> NDArray[np.int32]:
        """[tree's nodes, ceil(vocabulary / 32)], as xgrammar's: a bit for each token.

        Row i is for the token after node i; the root is the last of `output_ids`, or of the prompt.
        """
        ...


def check_bitmask(bitmask: NDArray[np.int32], tree: HostTree, vocab_size: int) -> None:
    """Raise ValueError if it is none for that tree."""
    expected = (len(tree.token_ids), -(-vocab_size // 32))
    if bitmask.dtype != np.int32 or bitmask.shape != expected:
        raise ValueError(
            f"bitmask: expected int32 of shape {expected}, got {bitmask.dtype} of {bitmask.shape}"
        )


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, how its continuation is sampled, and where that ends.

    Raises:
        ValueError: a value is out of range.
    """

    token_ids: tuple[int, ...]  # the prompt
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_token_ids: frozenset[int] = frozenset()  # The text ends with the first of them.
    stop: tuple[str, ...] = ()  # The text ends before the first of these strings.
    deadline_ms: float | None = None  # from submission on; what is decoded by then stays
    logprobs: int | None = None  # of each token and so many of the likeliest; None: of none
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError("token_ids: expected a prompt of at least one token, got none")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: expected at least 1, got {self.max_tokens}")
        if not all(self.stop):
            raise ValueError("stop: expected strings of at least one character, got an empty one")
        if self.deadline_ms is not None and not 0 < self.deadline_ms < inf:
            raise ValueError(f"deadline_ms: expected a number above 0, got {self.deadline_ms}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ValueError(f"logprobs: expected 0..{MAX_LOGPROBS}, got {self.logprobs}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of one request's trees."""

    max_rows: int = 64  # of a verified tree, the root among them
    max_depth: int = 32  # of which a remote's base may be half behind
    max_source_nodes: int = 2048  # kept in the pool for each source
    max_length: int | None = None  # the target's positions: context and tree's rows together
