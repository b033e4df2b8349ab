"""What happened while one request was decoded."""

from collections import Counter
from dataclasses import dataclass, field

from wanspec_kernels.drafts.pool import Kind


@dataclass(slots=True)
class Statistics:
    target_passes: int = 0
    rows: int = 0  # verified, roots included
    local_draft_passes: int = 0
    ahead_draft_passes: int = 0  # of those, while the target ran
    home_failures: int = 0
    tokens: int = 0  # committed; a stop string may end the text before the last of them
    home_tokens_accepted: int = 0
    remote_tokens_accepted: int = 0
    submitted_ms: float = 0.0  # These four are times of the engine's clock.
    admitted_ms: float | None = None  # when it first held pages
    first_token_ms: float | None = None
    last_token_ms: float | None = None
    waited_ms: float = 0.0  # ready, until the pass that took it along began
    preemptions: int = 0  # times that its pages went to others
    rounds_without_home: int = 0  # target passes before which home did nothing
    accepted: list[int] = field(default_factory=list)  # drafts, of each pass
    outcomes: Counter[Kind] = field(default_factory=Counter)
    nodes_dropped: int = 0
    wire_bytes_sent: int = 0
    wire_bytes_received: int = 0
