"""Request: what is asked of a verifier, and how large its trees may get."""

from dataclasses import dataclass
from typing import Literal

from wanspec_kernels.wire import MAX_DRAWS
from wanspec_kernels.wire.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for; sampling fields as in `SamplingParams`, one value each."""

    number: int
    token_ids: tuple[int, ...]  # the prompt
    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    rule: Literal["match", "rejection"] = "match"
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    share_seed: bool = True  # under `match`: drafters may rank by the target's own noise
    num_draws: int = 4  # under `rejection`: of each source at each expanded node
    replacement: bool = False  # of those draws

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            self.seed,
            self.rule,
            self.share_seed,
            self.num_draws,
            self.replacement,
        )

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError("token_ids: expected a prompt of at least one token, got none")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: expected at least 1, got {self.max_tokens}")
        if not 1 <= self.num_draws <= MAX_DRAWS:
            raise ValueError(f"num_draws: expected 1..{MAX_DRAWS}, got {self.num_draws}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of one request's trees."""

    max_rows: int = 64  # of a verified tree, the root among them
    max_depth: int = 32  # of which a remote's base may be half behind
    max_source_nodes: int = 2048  # kept in the pool for each source
    max_length: int | None = None  # the target's positions: context and tree's rows together
