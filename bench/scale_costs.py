"""What a request costs by the token and by the message, for the study of many.

Slot time by the drafter's round trip is the detailed simulator's; a verifier's time for a request's
messages is measured here, on this machine, by replaying what one drafter sent.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any, TypeVar

from bench.replay import new_pool, record
from wanspec_kernels.engine.request import Limits
from wanspec_kernels.simulation.link import LinkProfile
from wanspec_kernels.simulation.measures import Measures, best_tree, measure
from wanspec_kernels.simulation.rounds import Rounds
from wanspec_kernels.simulation.scenario import REMOTE_SHAPE, DrafterProfile, Scenario
from wanspec_kernels.simulation.traces import load
from wanspec_kernels.wire import Commit, Draft, check_of, decode, encode

TRACE = "bundled"
ROWS = 16  # of a request's tree: sixteen requests are 256 rows, which a pass takes in its stride
WIDTH = 16  # nodes a drafter expands for a request in a pass: what `wanspec-drafter` does
WIDER = 64
ROUND_TRIPS_MS = (4.0, 12.0, 25.0, 40.0, 60.0, 90.0, 130.0, 180.0, 240.0)
WIDTHS = (16, 32, 64, 128)
BATCHES = (1, 4, 8)  # requests at a time
BATCH_RTT_MS = 12.0
REPEATS = 15

Result = TypeVar("Result")
Run = Scenario | Rounds
Mapped = Callable[[Callable[[Run], Measures], list[Run]], Iterable[Measures]]


def scenario(tokens: int, seed: int) -> Scenario:
    """Target pass 30 ms, home 3 ms, remote 4 ms."""
    return Scenario(load(TRACE), limits=Limits(max_rows=ROWS), tokens=tokens, seed=seed)


def drafter(round_trip_ms: float, width: int = WIDTH) -> DrafterProfile:
    shape = replace(REMOTE_SHAPE, width=width)
    return DrafterProfile(LinkProfile(round_trip_ms), shape=shape, max_nodes=16 * width)


def slots(
    tokens: int,
    seeds: int,
    mapped: Mapped = map,
) -> dict[str, Any]:
    """Slot time a token: at home, best fixed tree and default policy, and by width and distance."""
    tuned = best_tree(scenario(tokens, 0))
    here = [scenario(tokens, seed) for seed in range(1, seeds + 1)]
    rows: dict[str, list[Run]] = {
        "home, fixed tree": [tuned.rounds(s) for s in here],
        "home, expected gain": [*here],
        "alone": [replace(s, home=None) for s in here],
    }
    places = [(width, rtt) for width in (WIDTH, WIDER) for rtt in ROUND_TRIPS_MS]
    remote = [[replace(s, drafters=(drafter(rtt, width),)) for s in here] for width, rtt in places]
    every = [s for row in [*rows.values(), *remote] for s in row]
    runs = list(mapped(measure, every))
    by_row = [runs[i : i + seeds] for i in range(0, len(runs), seeds)]
    found = [_summary(row, by_row[0]) for row in by_row]
    return {
        "trace": TRACE,
        "rows": ROWS,
        "width": WIDTH,
        "home_passes": tuned.passes,
        "here": dict(zip(rows, found, strict=False)),
        "remote": [
            {"width": width, "round_trip_ms": rtt} | entry
            for (width, rtt), entry in zip(places, found[len(rows) :], strict=True)
        ],
    }


def _summary(runs: list[Measures], against: list[Measures]) -> dict[str, float]:
    """Means and standard errors; capacity is over `against`, text by text."""
    pairs = zip(against, runs, strict=True)
    gains = [b.hot_ms / a.hot_ms for b, a in pairs]
    found = {"capacity": fmean(gains), "capacity_error": stdev(gains) / math.sqrt(len(gains))}
    for name in ("hot_ms", "latency_ms", "local_passes", "tokens_per_pass", "drafts_per_s"):
        found[name] = fmean(getattr(run, name) for run in runs)
    return found | {"up_mbit": fmean(run.up_mbit for run in runs)}


def batches(width: int, tokens: int, seeds: int, mapped: Mapped = map) -> list[dict[str, float]]:
    """What a slot's time leaves out: requests at one target that wait for each other."""
    near = drafter(BATCH_RTT_MS, width)
    here = [scenario(tokens, seed) for seed in range(1, seeds + 1)]
    every = [replace(s, drafters=(near,), requests=count) for count in BATCHES for s in here]
    runs = list(mapped(measure, every))
    by_count = [runs[i : i + seeds] for i in range(0, len(runs), seeds)]
    return [
        {"requests": count, "latency_ms": fmean(run.latency_ms for run in row)}
        for count, row in zip(BATCHES, by_count, strict=True)
    ]


def messages(width: int, tokens: int = 200) -> dict[str, float]:
    """Of one request at 30 ms: what comes a second, and the time of one core that it takes."""
    played = replace(scenario(tokens, 1), drafters=(drafter(30.0, width),), home=None)
    recording = record(played)
    seconds, commits = recording.seconds, recording.commits
    frames = [encode(draft) for draft in recording.drafts]

    def merge() -> float:
        """What of it went into selecting."""
        pool = new_pool(played.trace.vocab_size)
        selecting = 0.0
        for step in recording.steps:
            if isinstance(step, Draft):
                pool.offer(1, step)
            else:
                began = time.process_time()
                pool.select(ROWS, 32)
                selecting += time.process_time() - began
                pool.commit(step)
        return selecting

    def send() -> None:
        length = 1
        for token_ids in commits:
            length += len(token_ids)
            encode(Commit(1, length, token_ids, check_of(token_ids)))

    decoding, _ = _seconds(lambda: [decode(frame) for frame in frames])
    merging, selecting = _seconds(merge)
    total = decoding + merging + _seconds(send)[0]
    nodes = sum(len(draft.token_ids) for draft in recording.drafts)
    return {
        "width": width,
        "drafts_per_s": len(frames) / seconds,
        "nodes_a_draft": nodes / len(frames),
        "mbit": 8e-6 * sum(map(len, frames)) / seconds,
        "decode_us": 1e6 * decoding / len(frames),
        "merge_us": 1e6 * (merging - selecting) / len(frames),
        "select_us": 1e6 * selecting / len(commits),
        "core_share": total / seconds,
    }


def _seconds(call: Callable[[], Result]) -> tuple[float, Result]:
    """Of this process's time the least, as others on the machine only ever add; and its result."""
    found = []
    for _ in range(REPEATS):
        began = time.process_time()
        result = call()
        found.append((time.process_time() - began, result))
    return min(found, key=lambda pair: pair[0])
