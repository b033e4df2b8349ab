"""Summary of endpoint records: latencies by region and time."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from wanspec_kernels.probing.records import EndpointRecord, percentiles

POINTS = (50.0, 95.0, 99.0)


@dataclass(frozen=True, slots=True)
class EndpointSummary:
    region: str
    model: str
    period: str  # its beginning, UTC
    requests: int
    errors: int
    first_ms: tuple[float, ...]  # at POINTS; empty: no token came
    gap_ms: tuple[float, ...]
    tokens_per_chunk: float | None  # None: the endpoint does not count


def summarise(records: Iterable[EndpointRecord], hours: int) -> list[EndpointSummary]:
    """By region, model and periods of so many hours, in that order."""
    groups: dict[tuple[str, str, str], list[EndpointRecord]] = {}
    for record in records:
        when = datetime.fromisoformat(record.at).astimezone(UTC)
        begins = when.replace(hour=when.hour // hours * hours)
        key = (record.region, record.model, begins.strftime("%Y-%m-%d %H:00"))
        groups.setdefault(key, []).append(record)
    return [_summary(key, group) for key, group in sorted(groups.items())]


def _summary(key: tuple[str, str, str], group: list[EndpointRecord]) -> EndpointSummary:
    firsts = [record.first_ms for record in group if record.first_ms is not None]
    gaps = [gap for record in group for gap in record.gaps_ms]
    whole = [r for r in group if r.error is None and r.tokens]
    chunks = sum(1 + len(record.gaps_ms) for record in whole)
    return EndpointSummary(
        *key,
        requests=len(group),
        errors=sum(record.error is not None for record in group),
        first_ms=tuple(percentiles(firsts, POINTS)) if firsts else (),
        gap_ms=tuple(percentiles(gaps, POINTS)) if gaps else (),
        tokens_per_chunk=sum(r.tokens or 0 for r in whole) / chunks if chunks else None,
    )
