"""Backoff: how long to wait before the next attempt to connect."""

from __future__ import annotations

from random import Random


class Backoff:
    """Waits between attempts: doubled each time, within bounds, and never in step with others'."""

    def __init__(
        self, *, first_ms: int = 200, most_ms: int = 30_000, random: Random | None = None
    ) -> None:
        self._first_ms, self._most_ms = first_ms, most_ms
        self._random = random or Random()
        self._next_ms = first_ms

    def wait_ms(self) -> int:
        wait = self._next_ms
        self._next_ms = min(2 * wait, self._most_ms)
        return round(wait * self._random.uniform(0.5, 1.0))

    def reset(self) -> None:
        self._next_ms = self._first_ms
