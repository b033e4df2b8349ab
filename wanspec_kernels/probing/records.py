"""Records of probes: one JSON object a line, appended, so that a file holds a place over time."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

FORMAT = 1
MAX_LINE_BYTES = 4 * 1024 * 1024  # of a file that is read
MAX_SAMPLES = 200_000  # of one record


class RecordError(ValueError):
    """A line that is no record; names the file, the line and what was expected."""


@dataclass(frozen=True, slots=True)
class LinkRecord:
    """A link as seen by messages of the real size, one every `interval_ms`.

    `up_ms` and `down_ms` are each message's delays above the least of its way. Clocks at the two
    ends are not compared: an offset between them is in the least delay, which is half the least
    round trip here, and a steady drift is taken out.
    """

    name: str  # whose link: a drafter's
    region: str
    at: str  # UTC, ISO 8601, when it began
    payload_bytes: int  # up: a DRAFT's
    reply_bytes: int  # down: a COMMIT's
    interval_ms: float
    round_trip_ms: float  # the least
    up_ms: tuple[float, ...]
    down_ms: tuple[float, ...]
    lost: int  # not answered within the timeout
    bandwidth_mbit: float  # up, messages of `payload_bytes` back to back
    bandwidth_messages: int  # of which it was measured

    def __post_init__(self) -> None:
        _check_time("at", self.at)
        for name in ("payload_bytes", "reply_bytes", "lost", "bandwidth_messages"):
            _check(name, getattr(self, name), int, 0)
        for name in ("interval_ms", "round_trip_ms", "bandwidth_mbit"):
            _check(name, getattr(self, name), float, 0.0)
        for name in ("up_ms", "down_ms"):
            _check_samples(name, getattr(self, name))
        if len(self.up_ms) != len(self.down_ms) or not self.up_ms:
            raise RecordError(
                f"expected as many delays up as down, got {len(self.up_ms)}, {len(self.down_ms)}"
            )

    @property
    def round_trips_ms(self) -> list[float]:
        pairs = zip(self.up_ms, self.down_ms, strict=True)
        return [self.round_trip_ms + up + down for up, down in pairs]


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """One streamed completion of an OpenAI-compatible endpoint, or why there was none."""

    endpoint: str  # scheme, host and path; never credentials
    model: str
    region: str  # from where it was asked
    at: str  # UTC, ISO 8601
    first_ms: float | None  # from the request to the first token; None: none came
    gaps_ms: tuple[float, ...]  # between chunks that carry text
    tokens: int | None  # as the endpoint counts them; None: it does not say
    error: str | None

    def __post_init__(self) -> None:
        _check_time("at", self.at)
        _check_samples("gaps_ms", self.gaps_ms)
        if self.first_ms is not None:
            _check("first_ms", self.first_ms, float, 0.0)
        if self.tokens is not None:
            _check("tokens", self.tokens, int, 0)


Record = TypeVar("Record", LinkRecord, EndpointRecord)
_KINDS = {"link": LinkRecord, "endpoint": EndpointRecord}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def append(path: Path, record: LinkRecord | EndpointRecord) -> None:
    kind = next(name for name, which in _KINDS.items() if isinstance(record, which))
    line = json.dumps({"wanspec_probe": FORMAT, "kind": kind} | asdict(record))
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def load(path: Path, which: type[Record]) -> list[Record]:
    """The file's records of one kind, in order.

    Raises:
        OSError: it cannot be read.
        RecordError: a line is no record.
    """
    found: list[Record] = []
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            try:
                if len(line) > MAX_LINE_BYTES:
                    raise RecordError(f"expected at most {MAX_LINE_BYTES} bytes")
                record = _parse(json.loads(line))
            except (ValueError, TypeError) as error:
                raise RecordError(
                    f"{path}, line {number}: expected a record of a probe: {error}"
                ) from None
            if isinstance(record, which):
                found.append(record)
    return found


def percentiles(samples: Iterable[float], points: Sequence[float]) -> list[float]:
    """By nearest rank: a figure that was measured, never one between two."""
    ordered = sorted(samples)
    if not ordered:
        raise ValueError("expected one sample at least")
    return [ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)] for p in points]


def _parse(entry: Any) -> LinkRecord | EndpointRecord:
    if not isinstance(entry, dict) or entry.pop("wanspec_probe", None) != FORMAT:
        raise RecordError(f"no object of format {FORMAT}")
    kind = entry.pop("kind", None)
    if kind not in _KINDS:
        raise RecordError(f"kind: expected one of {', '.join(_KINDS)}, got {kind!r}")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
    return _KINDS[kind](**fields)  # type: ignore[no-any-return]


def _check(name: str, value: object, kind: type, low: float) -> None:
    good = isinstance(value, int | kind) and not isinstance(value, bool)
    if not good or not low <= value < math.inf:  # type: ignore[operator]
        raise RecordError(f"{name}: expected {kind.__name__} of {low} or more, got {value!r}")


def _check_samples(name: str, values: Sequence[object]) -> None:
    if not isinstance(values, tuple) or len(values) > MAX_SAMPLES:
        raise RecordError(f"{name}: expected a list of at most {MAX_SAMPLES}")
    for value in values:
        _check(name, value, float, 0.0)


def _check_time(name: str, value: object) -> None:
    try:
        when = datetime.fromisoformat(str(value))
    except ValueError:
        when = datetime.min
    if when.tzinfo is None:
        raise RecordError(f"{name}: expected a time with its zone, got {value!r}")
