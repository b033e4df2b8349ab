"""Whether a pass should wait for drafts that are due."""

from collections.abc import Sequence

from wanspec_kernels.control.tuning import TUNING, Tuning
from wanspec_kernels.drafts.replies import Arrival


def best_wait_ms(
    arrivals: Sequence[Arrival],
    *,
    coverage: float,
    tokens_per_ms: float,
    left_ms: float,
    now: float,
    tuning: Tuning = TUNING,
) -> float | None:
    """For how long to wait until the next draft that is worth it; None: not at all.

    Each addition to a tree that still grows holds the next token of the paths that run out of it
    (`Arrival.open_mass`) with probability `coverage`. The whole batch waits, and a millisecond
    costs it `tokens_per_ms`. At most `left_ms` are waited.
    """
    gains: list[tuple[float, float]] = []  # ms from now, tokens
    most = 0.0
    for arrival in arrivals:
        first_ms = arrival.next_ms - now
        if not tuning.least_wait_ms <= first_ms <= left_ms:  # past due: who knows when, or too late
            continue
        gain = arrival.open_mass
        for level in range(tuning.max_levels_ahead):
            gain *= coverage
            ms = first_ms + level * arrival.every_ms
            if ms > left_ms:
                break
            gains.append((ms, gain))
            most += gain
    if not gains:
        return None
    gains.sort()
    if most <= tokens_per_ms * gains[0][0]:
        return None
    total = best = 0.0
    for ms, gain in gains:
        total += gain
        best = max(best, total - tokens_per_ms * ms)
    return gains[0][0] if best > 0 else None
