"""Slots: which rows of a request's key/value store are taken."""

from collections.abc import Iterable


class OutOfSlots(RuntimeError):
    """More slots were asked for than the store may ever have."""


class Slots:
    """Hands out slot numbers, freed ones first: the store stays as short as what it holds."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.high_water = 0  # slots ever taken: the part of the store that attention reads
        self._free: list[int] = []

    @property
    def num_taken(self) -> int:
        return self.high_water - len(self._free)

    def take(self, count: int) -> list[int]:
        """Raises OutOfSlots, with nothing taken, if fewer than `count` are left."""
        if self.num_taken + count > self.capacity:
            raise OutOfSlots(
                f"slots: expected at most {self.capacity}, got {self.num_taken} taken and"
                f" {count} more asked for"
            )
        reused = min(count, len(self._free))
        taken = [self._free.pop() for _ in range(reused)]
        new = self.high_water + count - reused
        taken += range(self.high_water, new)
        self.high_water = new
        return taken

    def give_back(self, slots: Iterable[int]) -> None:
        self._free += slots
