"""`wanspec plan`."""

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from wanspec_kernels.command_line import describe, existing_file, fail, number, whole
from wanspec_kernels.commands.progress import progress_bar

if TYPE_CHECKING:
    from wanspec_kernels.planning.candidates import Candidate
    from wanspec_kernels.planning.inputs import Inputs
    from wanspec_kernels.planning.study import Study
    from wanspec_kernels.planning.verdict import Verdict
    from wanspec_kernels.simulation.measures import Map

UNSUPPORTED = 3  # exit status


def plan(
    file: Annotated[
        Path,
        typer.Argument(
            parser=existing_file,
            metavar="FILE",
            help="A TOML file with what was measured, as described above.",
        ),
    ],
    minutes: Annotated[
        float,
        number(
            "The study takes about so long, and simulates as much as fits in. More time narrows "
            "the intervals.",
            above=0,
            high=10_000,
        ),
    ] = 1.0,
    tokens: Annotated[
        int | None,
        whole("A run of the best settings has this many tokens, however long that takes.", 50),
    ] = None,
    seeds: Annotated[
        int | None,
        whole("Each of the best settings runs this many times, on other texts.", 3, 64),
    ] = None,
    requests: Annotated[
        int | None,
        whole(
            "This many requests are decoded at a time, in place of the file's target.requests.",
            1,
            256,
        ),
    ] = None,
    workers: Annotated[int, whole("This many processes simulate at a time.", 1, 1024)] = (
        os.cpu_count() or 1
    ),
    json_: Annotated[
        bool, typer.Option("--json", help="Standard output gets one JSON object and no table.")
    ] = False,
) -> None:
    """Say which drafters to use and with which settings, and what to expect of them.

    Passes of target and drafters, traces and links are yours, as you measured them; the rest is
    simulated. Where what you measured does not tell, it says why and gives no figure. The file:

    \b
    \\[target]
    pass_ms = {1 = 30.0, 64 = 31.5}  # a pass over 1 row and over 64
    \\[draft]
    trace = "pair.npz"               # of `wanspec trace`; or top_1 = 0.8
    \\[home]                           # leave it out if nothing drafts there
    pass_ms = 3.0
    \\[\\[drafters]]
    name = "my-university"
    pass_ms = 4.0                    # or by rows; trace or top_1 if its own
    links = "links.jsonl"            # of `wanspec probe link`

    The exit status is 0 if there is a result, which may be to draft at home; 2 if a file is
    malformed; and 3 if the model does not support what is asked, with each reason.
    """
    from wanspec_kernels.commands import plan_report
    from wanspec_kernels.planning.effort import Effort
    from wanspec_kernels.planning.errors import UnsupportedError
    from wanspec_kernels.planning.inputs import read
    from wanspec_kernels.planning.study import study
    from wanspec_kernels.planning.verdict import judge

    console = Console(stderr=json_, highlight=False)
    try:
        inputs = read(file, requests)
    except UnsupportedError as refusal:
        _refuse(refusal.reasons, json_)
    except (OSError, ValueError) as error:
        fail(f"FILE: {describe(error)}")
    effort = Effort(60.0 * minutes, tokens, seeds, workers)
    try:
        with _mapping(workers) as mapped, progress_bar() as progress:
            found = study(inputs, effort, mapped=mapped, progress=progress)
    except UnsupportedError as refusal:
        _refuse(refusal.reasons, json_)
    except BrokenProcessPool:
        fail("a process that simulated has ended; is there memory for --workers of them?", status=1)
    verdict = judge(found)
    if json_:
        print(json.dumps(_report(inputs, found, verdict)))
    else:
        plan_report.show(console, inputs, found, verdict)


def _refuse(reasons: list[str], json_: bool) -> None:
    if json_:
        print(json.dumps({"unsupported": reasons}))
    for reason in reasons:
        typer.echo(f"wanspec: {reason}", err=True)
    fail("the model does not support this plan: no figure is given", status=UNSUPPORTED)


@contextmanager
def _mapping(workers: int) -> "Iterator[Map]":
    if workers == 1:
        yield map
        return
    # Not forked: libraries have threads by now.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:

        def mapped(call: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
            # It starts processes, which inherit this: a Ctrl-C is for the one that can tell.
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                results = pool.map(call, items)
            finally:
                signal.signal(signal.SIGINT, before)
            yield from results

        try:
            yield mapped
        except BaseException:
            for process in active_children():  # what they are at may take minutes
                process.terminate()
            raise


def _report(inputs: "Inputs", study: "Study", verdict: "Verdict") -> dict[str, Any]:
    from wanspec_kernels.commands.plan_report import ASSUMES, advice
    from wanspec_kernels.planning.support import notes

    def entry(candidate: "Candidate") -> dict[str, Any]:
        return asdict(candidate) | {"drafters": candidate.names(inputs)}

    return {
        "verdict": verdict.use.value,
        "chosen": entry(verdict.chosen) if verdict.chosen else None,
        "advice": advice(inputs, study, verdict),
        "finalists": [
            entry(candidate) | {"expected": asdict(expected)}
            for candidate, expected in verdict.expectations.items()
        ],
        "without_drafters": {name: asdict(e) for name, e in verdict.here.items()},
        "best_without": study.best_here,
        "refused_drafters": study.refused,
        "dropped": [entry(c) | {"reasons": reasons} for c, reasons in study.dropped.items()],
        "notes": [n for d in inputs.drafters if d.name not in study.refused for n in notes(d)],
        "tokens": study.tokens,
        "seeds": study.seeds,
        "assumes": ASSUMES,
    }
