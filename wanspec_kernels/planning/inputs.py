"""Inputs of a plan: a TOML file of what was measured."""

import math
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wanspec_kernels.planning.errors import PlanError, UnsupportedError
from wanspec_kernels.probing.records import LinkRecord, load
from wanspec_kernels.simulation import traces
from wanspec_kernels.simulation.scenario import Machine
from wanspec_kernels.simulation.synthetic import CALIBRATED
from wanspec_kernels.simulation.trace import Trace

MAX_DRAFTERS = 32
MAX_REQUESTS = 256  # at a time; a run takes as many times as long
MAX_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Drafter:
    name: str
    machine: Machine
    trace: Trace | None  # None: the plan's
    records: tuple[LinkRecord, ...]


@dataclass(frozen=True, slots=True)
class Inputs:
    target: Machine
    requests: int  # at a time
    trace: Trace  # of the home drafter's model, and of drafters that name none
    home: Machine | None
    drafters: tuple[Drafter, ...]


def read(path: Path, requests: int | None = None) -> Inputs:
    """Read a plan's file; paths in it are relative to it.

    `requests` takes the place of what the file says of how many there are at a time.

    Raises:
        OSError: a file cannot be read.
        ValueError: the plan, a trace or a record is malformed.
        UnsupportedError: an acceptance for which there is no trace to be had.
    """
    with path.open("rb") as file:
        try:
            top = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PlanError(f"{path}: {error}") from None
    _keys("the file", top, {"target", "draft", "drafters"}, {"home"})
    target, draft = _table(top, "target"), _table(top, "draft")
    _keys("target", target, {"pass_ms"}, {"requests"})
    _keys("draft", draft, set(), {"trace", "top_1"})
    trace = _trace("draft", draft, path.parent)
    if trace is None:
        raise PlanError("draft: expected trace or top_1")
    home = None
    if "home" in top:
        _keys("home", _table(top, "home"), {"pass_ms"}, set())
        home = _machine("home", top["home"]["pass_ms"])
    entries = top["drafters"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_DRAFTERS:
        raise PlanError(f"drafters: expected 1 to {MAX_DRAFTERS} of [[drafters]]")
    drafters = tuple(_drafter(entry, path.parent) for entry in entries)
    if len({drafter.name for drafter in drafters}) < len(drafters):
        raise PlanError("drafters: expected each name once")
    said = _whole("target.requests", target.get("requests", 1), 1, MAX_REQUESTS)
    return Inputs(
        _machine("target", target["pass_ms"]),
        said if requests is None else requests,
        trace,
        home,
        drafters,
    )


def _drafter(entry: Any, folder: Path) -> Drafter:
    if not isinstance(entry, dict):
        raise PlanError("drafters: expected tables, as [[drafters]]")
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise PlanError(f"drafters: expected a name, got {name!r}")
    _keys(f"drafter {name}", entry, {"name", "pass_ms", "links"}, {"trace", "top_1"})
    records = [r for r in load(folder / str(entry["links"]), LinkRecord) if r.name == name]
    if not records:
        raise PlanError(f"drafter {name}: expected records of that name in {entry['links']}")
    return Drafter(
        name,
        _machine(f"drafter {name}", entry["pass_ms"]),
        _trace(f"drafter {name}", entry, folder),
        tuple(records),
    )


def _trace(where: str, table: dict[str, Any], folder: Path) -> Trace | None:
    if "trace" in table and "top_1" in table:
        raise PlanError(f"{where}: expected trace or top_1, got both")
    if "trace" in table:
        name = str(table["trace"])
        return traces.load(name if name == traces.BUNDLED else str(folder / name))
    if "top_1" not in table:
        return None
    top_1 = _number(f"{where}.top_1", table["top_1"])
    if not CALIBRATED[0] <= top_1 <= CALIBRATED[1]:
        raise UnsupportedError(
            [
                f"{where}: synthetic traces are calibrated for a top-1 acceptance of "
                f"{CALIBRATED[0]} to {CALIBRATED[1]}, not {top_1}: record one (`wanspec trace`)"
            ]
        )
    return traces.load(f"{traces.SYNTHETIC}{top_1}")


def _machine(where: str, value: Any) -> Machine:
    """A number of ms, or a table of rows = ms."""
    if not isinstance(value, dict):
        return Machine(_number(f"{where}.pass_ms", value))
    try:
        rows = sorted((int(key), _number(f"{where}.pass_ms", ms)) for key, ms in value.items())
    except ValueError:
        rows = []
    if not rows or rows[0][0] < 1 or rows[-1][0] > MAX_ROWS:
        raise PlanError(f"{where}.pass_ms: expected ms, or {{rows = ms, ...}}, got {value!r}")
    return Machine(rows[0][1], measured=tuple(rows))


def _keys(where: str, table: Any, needed: Collection[str], allowed: Collection[str]) -> None:
    got = set(table)
    if not set(needed) <= got <= {*needed, *allowed}:
        also = f" and perhaps {', '.join(sorted(allowed))}" if allowed else ""
        expected = ", ".join(sorted(needed)) or "nothing more"
        raise PlanError(f"{where}: expected {expected}{also}, got {', '.join(sorted(got))}")


def _table(top: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(top[name], dict):
        raise PlanError(f"{name}: expected a table, as [{name}]")
    return dict(top[name])


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise PlanError(f"{where}: expected a number above 0, got {value!r}")
    return float(value)


def _whole(where: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise PlanError(f"{where}: expected a whole number {low}..{high}, got {value!r}")
    return value
