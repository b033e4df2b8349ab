"""The demo's report: totals over its batch, beside the target alone on the same batch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wanspec_kernels.demo.observer import Prompt
from wanspec_kernels.drafts.pool import Kind
from wanspec_kernels.engine.statistics import Statistics

LEAST_MS = 1.0  # of a batch whose texts are one token each


@dataclass(frozen=True, slots=True)
class Decoded:
    """One text of a batch."""

    token_ids: tuple[int, ...]
    statistics: Statistics


def report_of(
    prompts: Sequence[Prompt],
    results: Sequence[Decoded],
    baseline: Sequence[Decoded],
    round_trips_ms: Sequence[float | None],
    *,
    num_foreign: int,
) -> dict[str, Any]:
    """Totals over the batch; a pass counts once for each text that it decides tokens of.

    Args:
        round_trips_ms: of each drafter, as measured; None if it has left.
        num_foreign: drafts that came for texts which had ended.
    """
    tokens, passes, seconds = _totals(results)
    alone_tokens, _, alone_seconds = _totals(baseline)
    counted = [result.statistics for result in results]
    outcomes: Counter[Kind] = sum((s.outcomes for s in counted), Counter())
    outcomes[Kind.FOREIGN] += num_foreign
    wire_bytes = sum(s.wire_bytes_sent + s.wire_bytes_received for s in counted)
    requests = [
        _request(prompt, result, alone)
        for prompt, result, alone in zip(prompts, results, baseline, strict=True)
    ]
    return {
        "tokens": tokens,
        "target_passes": passes,
        "tokens_per_target_pass": round(tokens / passes, 3),
        "identical_to_target_alone": all(r["identical_to_target_alone"] for r in requests),
        # By the token, as a sampled text of another length may be compared under `rejection`.
        "speedup_over_target_alone": round((alone_seconds / alone_tokens) / (seconds / tokens), 3),
        "drafters": len(round_trips_ms),
        "round_trip_ms": [None if r is None else round(r, 1) for r in round_trips_ms],
        "drafts": {kind.value: outcomes[kind] for kind in Kind},
        "remote_tokens_accepted": sum(s.remote_tokens_accepted for s in counted),
        "home_tokens_accepted": sum(s.home_tokens_accepted for s in counted),
        "local_draft_passes": sum(s.local_draft_passes for s in counted),
        "wire_bytes_per_token": round(wire_bytes / tokens, 1),
        "seconds": round(seconds, 3),
        "seconds_target_alone": round(alone_seconds, 3),
        "requests": requests,
    }


def _totals(batch: Sequence[Decoded]) -> tuple[int, int, float]:
    """Tokens, passes, and the time from the first token of any text to the last one.

    The prompts are read before; they are not paced, and drafts change nothing there.
    """
    counted = [decoded.statistics for decoded in batch]
    first_ms = min(s.first_token_ms or 0.0 for s in counted)
    last_ms = max(s.last_token_ms or 0.0 for s in counted)
    return (
        sum(s.tokens for s in counted),
        sum(s.target_passes for s in counted),
        max(LEAST_MS, last_ms - first_ms) / 1000,
    )


def _request(prompt: Prompt, result: Decoded, alone: Decoded) -> dict[str, Any]:
    s = result.statistics
    return {
        "name": prompt.name,
        "seed": prompt.seed,
        "tokens": s.tokens,
        "target_passes": s.target_passes,
        "tokens_per_target_pass": round(s.tokens / s.target_passes, 3),
        "identical_to_target_alone": result.token_ids == alone.token_ids,
        "drafts": {kind.value: s.outcomes[kind] for kind in Kind},
        "remote_tokens_accepted": s.remote_tokens_accepted,
        "home_tokens_accepted": s.home_tokens_accepted,
        "local_draft_passes": s.local_draft_passes,
    }
