"""`wanspec plan`."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from wanspec_kernels.commands.failure import fail

if TYPE_CHECKING:
    from wanspec_kernels.planning.candidates import Candidate
    from wanspec_kernels.planning.inputs import Inputs
    from wanspec_kernels.planning.study import Map, Study
    from wanspec_kernels.planning.verdict import Expectation, Verdict

UNSUPPORTED = 3  # exit status
ASSUMES = (
    "Of the simulator, in virtual time, rule match; intervals are 95 % over texts and spells of "
    "the links, not over what the model leaves out: machines shared with others (also "
    "of target and home drafter), engines' own time, links at hours that were not probed."
)


def plan(
    file: Annotated[Path, typer.Argument(help="What was measured, a TOML file as below.")],
    tokens: Annotated[int, typer.Option(min=50, help="Of a run.")] = 500,
    seeds: Annotated[int, typer.Option(min=3, max=64, help="Runs of each finalist.")] = 8,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object only.")] = False,
) -> None:
    """Which drafters to use, the tree and the policy, and what to expect; or why nobody can say.

    \b
    \\[target]
    pass_ms = {1 = 30.0, 64 = 31.5}     # by rows, as measured
    \\[draft]
    trace = "pair.npz"                  # of `wanspec trace`; or top_1 = 0.8
    \\[home]                              # leave it out where there is no drafter at home
    pass_ms = 3.0
    \\[\\[drafters]]
    name = "my-university"
    pass_ms = 4.0                       # or by rows; trace or top_1 for a model of its own
    links = "links.jsonl"               # of `wanspec probe link --name my-university`

    Exit status: 0 there is a plan, which may be to draft at home; 2 a file is malformed; 3 what is
    asked for lies outside what the model supports, and each reason is named.
    """
    from wanspec_kernels.planning.errors import UnsupportedError
    from wanspec_kernels.planning.inputs import read
    from wanspec_kernels.planning.study import study
    from wanspec_kernels.planning.verdict import judge

    console = Console(stderr=json_, highlight=False)
    try:
        inputs = read(file)
        with _mapping(workers) as mapped, console.status("") as status:
            found = study(inputs, tokens=tokens, seeds=seeds, mapped=mapped, progress=status.update)
        verdict = judge(found)
    except UnsupportedError as refusal:
        if json_:
            print(json.dumps({"unsupported": refusal.reasons}))
        for reason in refusal.reasons:
            typer.echo(f"wanspec: {reason}", err=True)
        fail("the model does not support this plan: no figure is given", status=UNSUPPORTED)
    except (OSError, ValueError) as error:
        fail(str(error))
    if json_:
        print(json.dumps(_report(inputs, found, verdict)))
    else:
        _show(console, inputs, found, verdict)


@contextmanager
def _mapping(workers: int) -> "Iterator[Map]":
    if workers == 1:
        yield map
        return
    # Not forked: libraries have threads by now.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield pool.map


def _name(inputs: "Inputs", candidate: "Candidate") -> str:
    drafters = " + ".join(candidate.names(inputs))
    return f"{drafters}, {candidate.policy}, {candidate.rows} rows, width {candidate.width}"


def _report(inputs: "Inputs", study: "Study", verdict: "Verdict") -> dict[str, Any]:
    from wanspec_kernels.planning.support import notes

    def entry(candidate: "Candidate") -> dict[str, Any]:
        return asdict(candidate) | {"drafters": candidate.names(inputs)}

    return {
        "verdict": verdict.use.value,
        "chosen": entry(verdict.chosen) if verdict.chosen else None,
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


def _show(console: Console, inputs: "Inputs", study: "Study", verdict: "Verdict") -> None:
    from wanspec_kernels.planning.support import notes

    table = Table(title=f"wanspec plan: {len(study.seeds)} runs of {study.tokens} tokens each")
    table.add_column("")
    for title in ("latency\nms a token", "95th", "home passes\na token", "tokens\na pass"):
        table.add_column(title, justify="right")
    for title in ("latency\n× co-located", "home\npasses ×", "time at\nthe target ×", "Mbit/s up"):
        table.add_column(title, justify="right")
    for candidate, expected in verdict.expectations.items():
        style = "bold" if candidate == verdict.chosen else ""
        table.add_row(_name(inputs, candidate), *_cells(expected), style=style)
    table.add_section()
    for name, expected in verdict.here.items():
        table.add_row(name, *_cells(expected))
    console.print(table)
    console.print(f"[bold]{verdict.use.value}[/bold]")
    if verdict.chosen is not None:
        console.print(f"  {_name(inputs, verdict.chosen)}")
    for drafter in inputs.drafters:
        for reason in study.refused.get(drafter.name, []):
            console.print(f"not used: {drafter.name}: {reason}")
        if drafter.name not in study.refused:
            console.print("\n".join(notes(drafter)))
    for candidate, reasons in study.dropped.items():
        console.print(f"not counted: {_name(inputs, candidate)}: {'; '.join(reasons)}")
    console.print(ASSUMES, style="dim")


def _cells(expected: "Expectation") -> list[str]:
    passes = expected.passes_ratio
    return [
        f"{expected.latency_ms.mean:.2f}",
        f"{expected.p95_ms.mean:.1f}",
        f"{expected.local_passes.mean:.2f}",
        f"{expected.tokens_per_pass.mean:.2f}",
        f"{expected.latency_ratio.mean:.2f} ({_range(expected.latency_ratio)})",
        "–" if passes is None else f"{passes.mean:.2f}",
        f"{expected.hot_ratio.mean:.2f}",
        f"{expected.up_mbit.mean:.1f}",
    ]


def _range(interval: Any) -> str:
    return f"{interval.low:.2f}–{interval.high:.2f}"
