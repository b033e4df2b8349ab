"""Plans of few lines, and the records that go with them."""

from pathlib import Path
from random import Random

from wanspec_kernels.probing.frames import draft_bytes
from wanspec_kernels.probing.records import LinkRecord, append

AT = "2026-11-24T10:00:00+00:00"
PLAN = """
[target]
pass_ms = {1 = 30.0, 16 = 31.0}
[draft]
trace = "bundled"
[home]
pass_ms = 3.0
[[drafters]]
name = "uni"
pass_ms = {16 = 3.5}
links = "links.jsonl"
"""


def record(name="uni", round_trip_ms=10.0, *, samples=1500, stalls=0, **more) -> LinkRecord:
    """One every 20 ms; a stall of a second here and there."""
    random = Random(name)
    up = [round(random.uniform(0.0, 2.0), 2) for _ in range(samples)]
    for number in range(stalls):
        begins = (number + 1) * samples // (stalls + 1)
        up[begins : begins + 50] = [1000.0 - 20.0 * i for i in range(50)]
    fields = {
        "name": name, "region": "north", "at": AT, "payload_bytes": draft_bytes(),
        "reply_bytes": 64, "interval_ms": 20.0, "round_trip_ms": round_trip_ms,
        "up_ms": tuple(up), "down_ms": (0.5,) * samples, "lost": 0, "bandwidth_mbit": 100.0,
        "bandwidth_messages": 700,
    }  # fmt: skip
    return LinkRecord(**(fields | more))


def write(folder: Path, text: str = PLAN, records: tuple[LinkRecord, ...] = ()) -> Path:
    for one in records or (record(),):
        append(folder / "links.jsonl", one)
    path = folder / "plan.toml"
    path.write_text(text)
    return path
