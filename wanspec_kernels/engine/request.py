"""Request: what is asked of the target, and how large its trees may get."""

from dataclasses import dataclass, field

from wanspec_kernels.wire.sampling import Sampling


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

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError("token_ids: expected a prompt of at least one token, got none")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: expected at least 1, got {self.max_tokens}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of one request's trees."""

    max_rows: int = 64  # of a verified tree, the root among them
    max_depth: int = 32  # of which a remote's base may be half behind
    max_source_nodes: int = 2048  # kept in the pool for each source
    max_length: int | None = None  # the target's positions: context and tree's rows together
