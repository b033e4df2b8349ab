"""Refusals: who knocked and was not let in, and why; bounded, whoever knocks how often."""

from dataclasses import dataclass

MAX_REFUSALS = 64  # different ones; the oldest gives way


@dataclass(slots=True)
class Refusal:
    who: str
    reason: str
    count: int = 0


class Refusals:
    """The latest refusals, each kind of each peer once and counted."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Refusal] = {}

    def add(self, who: str, reason: str) -> None:
        refusal = self._found.pop((who, reason), None) or Refusal(who, reason)
        refusal.count += 1
        self._found[who, reason] = refusal
        if len(self._found) > MAX_REFUSALS:
            self._found.pop(next(iter(self._found)))

    def latest(self) -> list[Refusal]:
        """Those that came last are last."""
        return list(self._found.values())
