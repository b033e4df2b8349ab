"""Ten regions, a thousand drafters, ten thousand requests in flight: on paper and in virtual time.

python -m bench.scale          measure: bench/results/scale.json
python -m bench.scale --draw   figure and tables from that file, for docs/
"""

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from bench import scale_report
from bench.machine import describe
from bench.scale_costs import BATCH_RTT_MS, WIDER, WIDTH, WIDTHS, batches, messages, slots
from bench.scale_world import HOT, REGIONS, Cost, Settings, World, round_trip_ms
from wanspec_kernels.drafts.admission import AdmissionConfig
from wanspec_kernels.drafts.exchange import ExchangeConfig

RESULTS = Path("bench/results/scale.json")
LOADS = tuple(round(1.0 + 0.05 * i, 2) for i in range(8))  # of the hot region at its peak
SEATS_ASKED = 16  # `wanspec-drafter --max-requests`


def cost_of(slots_found: dict[str, Any], width: int) -> Cost:
    here = slots_found["here"]
    remote = [entry for entry in slots_found["remote"] if entry["width"] == width]
    return Cost(
        min(here[name]["hot_ms"] for name in here if name.startswith("home")),
        tuple(entry["round_trip_ms"] for entry in remote),
        tuple(entry["hot_ms"] for entry in remote),
    )


def seats_allowed(slots_found: dict[str, Any]) -> int:
    """Requests whose drafts a verifier reads of one drafter, at its default rate."""
    rates = [e["drafts_per_s"] for e in slots_found["remote"] if e["width"] == WIDTH]
    return int(AdmissionConfig().max_messages_per_s / max(rates))


def variants(slots_found: dict[str, Any]) -> dict[str, Settings]:
    base = Settings(cost_of(slots_found, WIDTH))
    allowed = seats_allowed(slots_found)
    many = replace(base, seats=SEATS_ASKED)
    steady = replace(many, steady=True)
    return {
        "drafts at home": base,
        f"{allowed} requests a drafter": replace(base, seats=allowed),
        f"{SEATS_ASKED} requests a drafter": many,
        f"{SEATS_ASKED}, lent at all hours": steady,
        f"{SEATS_ASKED}, all hours, {WIDER} nodes a pass": replace(
            steady, cost=cost_of(slots_found, WIDER)
        ),
    }


def run(job: tuple[str, Settings]) -> dict[str, Any]:
    name, settings = job
    began = time.perf_counter()
    found = World(settings).run()
    waits = np.percentile(found.waits_ms, [50, 95, 99]) / found.service_ms
    token_ms = np.percentile(found.token_ms, [50, 95, 99])
    return {
        "variant": name,
        "seats": settings.seats,
        "hot_load": settings.hot_load,
        "requests": found.requests,
        "wait": waits.tolist(),  # of a mean request's time
        "token_ms": token_ms.tolist(),
        "remote_share": found.remote_tokens / found.tokens,
        "remote_rtt_ms": found.remote_rtt_ms / found.remote_tokens if found.remote_tokens else None,
        "evictions": found.evictions,
        "busiest_slots": found.busiest_slots,
        "seats_full": found.seats_full,
        "seconds": time.perf_counter() - began,
    }


def study(workers: int, tokens: int, seeds: int) -> dict[str, Any]:
    began = time.perf_counter()
    with ProcessPoolExecutor(workers) as pool:
        found = slots(tokens, seeds, pool.map)
        together = {width: batches(width, tokens // 2, seeds, pool.map) for width in (WIDTH, WIDER)}
        typer.echo(f"slot times: {time.perf_counter() - began:.0f} s")
        sent = [messages(width) for width in WIDTHS]  # alone: it is timed
        jobs = [
            (name, replace(settings, hot_load=load))
            for name, settings in variants(found).items()
            for load in LOADS
        ]
        runs = []
        for result in pool.map(run, jobs):
            runs.append(result)
            typer.echo(f"{len(runs)} of {len(jobs)}: {result['variant']}, {result['hot_load']}")
    base = jobs[0][1]
    settings = {k: v for k, v in asdict(base).items() if k not in ("cost", "hot_load")}
    return {
        "machine": describe(),
        "seconds": round(time.perf_counter() - began, 1),
        "tokens": tokens,
        "seeds": seeds,
        "settings": settings,
        "regions": [asdict(r) | {"rtt_ms": round_trip_ms(REGIONS[HOT], r)} for r in REGIONS],
        "slots": found,
        "batches": [
            {"round_trip_ms": BATCH_RTT_MS, "width": width, "runs": runs}
            for width, runs in together.items()
        ],
        "messages": sent,
        "seats_allowed": seats_allowed(found),
        "seats_asked": SEATS_ASKED,
        "limits": {
            "messages_per_s": AdmissionConfig().max_messages_per_s,
            "sessions": ExchangeConfig().max_sessions,
        },
        "runs": runs,
    }


def main(
    draw: Annotated[bool, typer.Option("--draw", help="From the stored data only.")] = False,
    workers: int = os.cpu_count() or 1,
    tokens: Annotated[int, typer.Option(help="Of a run of the detailed simulator.")] = 400,
    seeds: Annotated[int, typer.Option(min=2)] = 4,
) -> None:
    """Measure, or draw what was measured."""
    if not draw:
        RESULTS.write_text(json.dumps(study(workers, tokens, seeds), indent=1) + "\n")
    scale_report.write(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    typer.run(main)
