"""Two clocks: one for what the device spends, one for what a caller waits."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Microseconds a call."""

    median_us: float
    min_us: float
    p90_us: float
    eager_us: float  # launched from Python and waited for, median
    samples: int
    method: str  # "graph", "events" or "wall"
    why_no_graph: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def time_calls(calls: Sequence[Call], device: torch.device, seconds: float = 0.5) -> Timing:
    """Time one call; `calls` are the same on different inputs and are made in turn.

    On CUDA all of them are captured into one graph, whose replays are timed by events and divided
    by their number. What cannot be captured is timed by events around eager calls.
    """
    if device.type != "cuda":
        samples = _wall(calls, device, seconds)
        return _summary(samples, statistics.median(samples), "wall")
    for call in calls:
        call()  # compiles, allocates, sets up
    torch.cuda.synchronize()
    eager = statistics.median(_wall(calls, device, min(seconds, 0.2)))
    reason = ""
    try:
        graph = _capture(calls)
    except Exception as error:
        torch.cuda.synchronize()
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}" if str(error) else ""
        samples = _events(lambda: [call() for call in calls], len(calls), seconds)
        return _summary(samples, eager, "events", reason or "capture failed")
    samples = _events(graph.replay, len(calls), seconds)
    return _summary(samples, eager, "graph")


def time_queued(call: Call, seconds: float = 0.5) -> Timing:
    """Time a call that cannot be captured, as it replays a graph: events around calls in a queue
    before the device."""
    samples = _events(call, 1, seconds)
    return _summary(samples, statistics.median(samples), "events", "it replays a graph")


def time_launched(call: Call, seconds: float = 0.5) -> Timing:
    """Time a call as its caller waits for it, launched from Python."""
    call()
    samples = _wall([call], torch.device("cuda"), seconds)
    return _summary(samples, statistics.median(samples), "wall", "not asked for")


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written a second by a large elementwise kernel on the device.

    A plain copy would be a memcpy node of the graph, which moves a third less.
    """
    size = (1 << 28) if device.type == "cuda" else (16 << 20)
    source = torch.rand(size, device=device)
    target = torch.empty_like(source)
    best = time_calls([lambda: torch.neg(source, out=target)], device, 0.3)
    return 2 * source.nbytes / (best.median_us * 1e-6)


def extra_bytes(call: Call, device: torch.device) -> int | None:
    """Device memory that one call takes at its height, outputs included."""
    if device.type != "cuda":
        return None
    call()  # what it keeps between calls is there already
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _capture(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def _events(run: Call, calls_each: int, seconds: float) -> list[float]:
    """Microseconds a call of each run; all runs are queued before the host waits."""
    run()
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    one = time.perf_counter() - started
    count = max(5, min(200, int(seconds / max(one, 1e-6))))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    gaps = (before.elapsed_time(after) for before, after in pairwise(marks))
    return [gap * 1e3 / calls_each for gap in gaps]


def _wall(calls: Sequence[Call], device: torch.device, seconds: float) -> list[float]:
    """Microseconds of each call as its caller waits for it."""
    samples: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(samples) < 5 or (time.perf_counter() < deadline and len(samples) < 200):
        call = calls[len(samples) % len(calls)]
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        samples.append((time.perf_counter() - started) * 1e6)
    return samples


def _summary(samples: list[float], eager: float, method: str, reason: str = "") -> Timing:
    ordered = sorted(samples)
    p90 = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
    median = statistics.median(ordered)
    return Timing(median, ordered[0], p90, eager, len(ordered), method, reason)
