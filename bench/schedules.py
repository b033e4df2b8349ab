"""Schedules: the scheduler in virtual time, through as many random schedules as one likes.

python -m bench.schedules             10,000, half of them with a drafter at home; minutes
python -m bench.schedules --count N --first-seed S

Requests come and are cancelled, sources join, leave and lie, passes stall, pages run out, deadlines
pass. Of each schedule the same is checked as in tests/engine/test_scheduler.py, which runs 800:
texts are exact, nobody waits longer than the bound, and no page is lost.
"""

import json
import time
from collections import Counter
from typing import Annotated

import typer

from bench.machine import describe
from tests.engine.schedules import Run, play


def main(
    count: Annotated[int, typer.Option(help="Schedules to run.")] = 10_000,
    first_seed: Annotated[int, typer.Option(help="Two schedules use each seed from here on.")] = 0,
) -> None:
    began_s = time.monotonic()
    reasons: Counter[str] = Counter()
    passes = preempted = 0
    longest_wait_ms = 0.0
    for i in range(count):
        seed, home = first_seed + i // 2, bool(i % 2)
        try:
            run: Run = play(seed, home)
        except BaseException:
            print(f"seed {seed}, {'with' if home else 'without'} home")
            raise
        reasons += run.reasons
        passes += run.passes
        preempted += run.scheduler.num_preempted
        longest_wait_ms = max(longest_wait_ms, run.longest_wait_ms)
    print(
        f"{count} schedules in {time.monotonic() - began_s:.0f} s: {passes} passes, {preempted} "
        f"preemptions; an idle target waited {longest_wait_ms:.0f} ms at most"
    )
    print("requests ended: " + ", ".join(f"{n} {reason}" for reason, n in reasons.most_common()))
    print(json.dumps(describe()))


if __name__ == "__main__":
    typer.run(main)
