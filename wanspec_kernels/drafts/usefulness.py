"""Usefulness: which of several drafters brings what is accepted, and how much each is asked for."""

from collections.abc import Iterable
from dataclasses import dataclass, field

FADING = 0.98  # a target pass
PASSES_JUDGED = 64  # of the target, before one drafter is called useless, or useful again
MIN_ACCEPTED = 16.0  # tokens of all drafters; with fewer nobody is judged
LEAST_SHARE = 0.02  # of them: who brings less is asked for less,
ENOUGH_SHARE = 0.1  # and who brings so much for all again
SMALL_PART = 8  # what is asked for then: one node in so many


@dataclass(slots=True)
class _Record:
    passes: int = 0  # since it was judged
    accepted: float = 0.0  # tokens that it brought first, fading
    is_useless: bool = False


@dataclass(slots=True)
class Usefulness:
    """Fading counts of the accepted tokens, by the remote source that brought each first.

    One that is slow, or wrong, or another's double brings next to none. It is asked for a small
    tree then: enough to be seen to become useful, and to be there when the others have gone. Once
    they have, or bring no more, it is asked for a large one again.
    """

    _records: dict[int, _Record] = field(default_factory=dict)

    def enrol(self, source: int) -> None:
        self._records.setdefault(source, _Record())

    def retire(self, source: int) -> None:
        if self._records.pop(source, None) is not None:
            for record in self._records.values():
                record.passes, record.is_useless = 0, False

    def observe(self, brought_by: Iterable[int | None]) -> None:
        """Of the tokens that a target pass accepted."""
        for record in self._records.values():
            record.passes += 1
            record.accepted *= FADING
        for source in brought_by:
            if source in self._records:
                self._records[source].accepted += 1
        total = sum(record.accepted for record in self._records.values())
        for record in self._records.values():
            if record.passes < PASSES_JUDGED:
                continue
            is_useless = total >= MIN_ACCEPTED and record.accepted < total * (
                ENOUGH_SHARE if record.is_useless else LEAST_SHARE
            )
            if is_useless != record.is_useless:
                record.passes, record.is_useless = 0, is_useless

    def max_nodes(self, source: int, most: int) -> int:
        """Of the tree that it is asked for; it keeps `most`."""
        record = self._records.get(source)
        return max(1, most // SMALL_PART) if record is not None and record.is_useless else most
