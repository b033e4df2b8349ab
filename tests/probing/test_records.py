"""Records: files, what is refused, percentiles, and the summary by region and time."""

import json
from dataclasses import replace

import pytest

from wanspec_kernels.probing.records import (
    EndpointRecord,
    LinkRecord,
    RecordError,
    append,
    load,
    percentiles,
)
from wanspec_kernels.probing.summary import summarise

AT = "2026-11-24T10:05:00+00:00"
LINK = LinkRecord(
    "uni", "north", AT, 1848, 64, 20.0, 30.0, (0.0, 1.0, 2.0), (0.5, 0.0, 4.0), 0, 80.0, 700
)
ENDPOINT = EndpointRecord("http://x/v1", "m", "north", AT, 200.0, (10.0, 20.0), 6, None)


def test_records_of_both_kinds_share_a_file(tmp_path):
    path = tmp_path / "probes.jsonl"
    for record in (LINK, ENDPOINT, LINK):
        append(path, record)
    assert load(path, LinkRecord) == [LINK, LINK]
    assert load(path, EndpointRecord) == [ENDPOINT]
    assert LINK.round_trips_ms == [30.5, 31.0, 36.0]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"}, {"wanspec_probe": 2}, {"more": 1}, {"round_trip_ms": -1.0},
        {"round_trip_ms": float("nan")}, {"up_ms": [0.0]}, {"up_ms": ["x", 1, 2]},
        {"up_ms": []}, {"at": "2026-11-24"}, {"lost": 1.5}, {"interval_ms": None},
    ],
)  # fmt: skip
def test_a_line_that_is_no_record_is_named(tmp_path, change):
    path = tmp_path / "probes.jsonl"
    append(path, LINK)
    entry = json.loads(path.read_text()) | change
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    with pytest.raises(RecordError, match="line 2: expected a record"):
        load(path, LinkRecord)


def test_percentiles_are_samples():
    samples = list(range(100, 0, -1))
    assert percentiles(samples, (50, 95, 99, 100)) == [50, 95, 99, 100]
    assert percentiles([7.0], (50, 99)) == [7.0, 7.0]
    with pytest.raises(ValueError, match="one sample"):
        percentiles([], (50,))


def test_a_summary_by_region_and_period():
    later = replace(ENDPOINT, at="2026-11-24T13:00:00+00:00", first_ms=None, error="HTTP 429",
                    gaps_ms=(), tokens=None)  # fmt: skip
    # The same hour as the first, by another clock.
    south = replace(ENDPOINT, region="a", at="2026-11-24T12:30:00+02:00", first_ms=900.0)
    rows = summarise([ENDPOINT, later, south], hours=1)
    assert [(r.region, r.period, r.requests, r.errors) for r in rows] == [
        ("a", "2026-11-24 10:00", 1, 0),
        ("north", "2026-11-24 10:00", 1, 0),
        ("north", "2026-11-24 13:00", 1, 1),
    ]
    assert rows[1].first_ms == (200.0, 200.0, 200.0)
    assert rows[1].gap_ms == (10.0, 20.0, 20.0)
    assert rows[1].tokens_per_chunk == 2.0
    assert rows[2].first_ms == ()
