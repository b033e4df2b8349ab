"""Assignment: which remote drafters are asked to draft for which requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# One drafter serves so many requests beside others before it is kept for those that have nobody.
# A batch of draft passes costs a GPU hardly more than one until about there (docs/scale.md).
RACED_REQUESTS = 8
STAYS = 0.8  # of its distance counts for who drafts for a request already, so equals do not swap
UNKNOWN_MS = 100.0  # distance of a drafter of which no round trip was measured


@dataclass(frozen=True, slots=True)
class Seats:
    """One drafter, as far as sharing it out is concerned."""

    source: int
    num_seats: int  # requests that it takes, and keeps up with
    distance_ms: float | None  # round trip, or what a reply takes; None: not measured yet
    credit: float  # 0..1: what its drafts proved to be worth
    declined: frozenset[int] = frozenset()  # requests that it will not have


def assign(
    requests: Sequence[int],
    drafters: Sequence[Seats],
    current: Mapping[int, frozenset[int]],
    *,
    fixed: frozenset[int] = frozenset(),
) -> dict[int, frozenset[int]]:
    """The sources that draft for each request.

    Every request gets one drafter before any gets two, those first that came first. A drafter is
    the better the nearer it is, the more it is worth and the fewer of its seats are taken. A second
    and further ones are given where the drafter has less than `RACED_REQUESTS`: they race, and what
    is near for one request may be late for another.

    Args:
        requests: in order of age.
        current: who drafts for each request now.
        fixed: requests that were moved lately and keep whom they have, as far as seats go.
    """
    taken = {drafter.source: 0 for drafter in drafters}
    by_source = {drafter.source: drafter for drafter in drafters}
    found: dict[int, set[int]] = {request: set() for request in requests}
    for request in requests:
        if request not in fixed:
            continue
        for source in current.get(request, frozenset()):
            drafter = by_source.get(source)
            if drafter is not None and taken[source] < drafter.num_seats:
                found[request].add(source)
                taken[source] += 1
    for rank in range(len(drafters)):
        for request in requests:
            if len(found[request]) > rank:
                continue
            stays = current.get(request, frozenset())
            free = [
                drafter
                for drafter in drafters
                if drafter.source not in found[request]
                and request not in drafter.declined
                and taken[drafter.source] < _seats_at(drafter, rank)
            ]
            if free:
                best = min(free, key=lambda d: _cost(d, taken[d.source], d.source in stays))
                found[request].add(best.source)
                taken[best.source] += 1
    return {request: frozenset(sources) for request, sources in found.items()}


def _seats_at(drafter: Seats, rank: int) -> int:
    return drafter.num_seats if rank == 0 else min(drafter.num_seats, RACED_REQUESTS)


def _cost(drafter: Seats, taken: int, stays: bool) -> tuple[float, int]:
    distance = UNKNOWN_MS if drafter.distance_ms is None else drafter.distance_ms
    crowded = 1.0 + taken / drafter.num_seats
    worth = max(0.05, drafter.credit)
    return (1.0 + distance) * crowded / worth * (STAYS if stays else 1.0), drafter.source
