"""What `wanspec plan` prints: what to do, the figures behind it, and what they leave out."""

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wanspec_kernels.planning.candidates import NODES_A_WIDTH, Candidate
from wanspec_kernels.planning.inputs import Inputs
from wanspec_kernels.planning.intervals import Interval
from wanspec_kernels.planning.study import ALONE, Study
from wanspec_kernels.planning.support import notes
from wanspec_kernels.planning.verdict import Expectation, Use, Verdict

ASSUMES = (
    "All figures are the simulator's, in virtual time and for rule match. The 95 % intervals cover "
    "other texts and other spells of the links. They do not cover what the model leaves out: "
    "machines that others use too; an engine's own time "
    "between passes; links at hours that were not probed."
)


def show(console: Console, inputs: Inputs, study: Study, verdict: Verdict) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style))

    labels = {c: chr(ord("A") + i) for i, c in enumerate(verdict.expectations)}
    say(advice(inputs, study, verdict), "bold")
    console.print(_table(study, verdict, labels))
    for candidate, label in labels.items():
        say(f"{label}: {_settings(inputs, candidate)}")
    say(
        f"Each figure is the mean of {len(study.seeds)} runs of {study.tokens} tokens; a longer "
        "--minutes makes more of them, which narrows the intervals. Latency is the time that a "
        f"token takes; its ratio, with the 95 % interval, is to {study.best_here!r}, "
        "the fastest without remote drafters. The 95th percentile is of the same times. Home "
        "passes are the draft passes beside the target."
    )
    for drafter in inputs.drafters:
        for reason in study.refused.get(drafter.name, []):
            say(f"{drafter.name} is not used: {reason}.")
        if drafter.name not in study.refused:
            say("\n".join(notes(drafter)))
    for candidate, reasons in study.dropped.items():
        say(f"Not counted is {_settings(inputs, candidate)}: {'; '.join(reasons)}.")
    say(ASSUMES, "dim")


def advice(inputs: Inputs, study: Study, verdict: Verdict) -> str:
    """What to do, with options that exist."""
    chosen = verdict.chosen
    if chosen is None:
        if verdict.use is Use.none:
            why = "No drafter makes this faster"
        else:
            why = "No drafter is shown to make this faster, which a longer --minutes may change"
        home = " --home-draft ''" if study.best_here == ALONE else ""
        how = "with the target alone" if home else "and draft at home only"
        return f"{why}: run `wanspec generate …{home}` without --bind, {how}."
    expected = verdict.expectations[chosen]
    ratio = expected.latency_ratio
    names = chosen.names(inputs)
    gain = f"a token takes {ratio.mean:.2f} times as long as without ({_range(ratio)})"
    if verdict.use is Use.fewer and expected.passes_ratio is not None:
        gain += f", and home makes {expected.passes_ratio.mean:.2f} times the draft passes"
    return (
        f"Use {' and '.join(names)}: {gain}. Run `wanspec generate … --bind … --rows "
        f"{chosen.rows}` at the target, and `wanspec-drafter … --width "
        f"{chosen.width} --max-nodes {NODES_A_WIDTH * chosen.width}` at {' and at '.join(names)}."
    )


def _table(study: Study, verdict: Verdict, labels: dict[Candidate, str]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("")
    for title in (
        "latency\nms", "95th\nms", "latency, ratio\n(95 % interval)", "home\npasses",
        "tokens\na pass", "up\nMbit/s",
    ):  # fmt: skip
        table.add_column(title, justify="right", no_wrap=True)
    for candidate, expected in verdict.expectations.items():
        style = "bold" if candidate == verdict.chosen else ""
        table.add_row(labels[candidate], *_cells(expected), style=style)
    table.add_section()
    for name, expected in verdict.here.items():
        table.add_row(name, *_cells(expected))
    return table


def _cells(expected: Expectation) -> list[str]:
    return [
        f"{expected.latency_ms.mean:.2f}",
        f"{expected.p95_ms.mean:.1f}",
        f"{expected.latency_ratio.mean:.2f} ({_range(expected.latency_ratio)})",
        f"{expected.local_passes.mean:.2f}",
        f"{expected.tokens_per_pass.mean:.2f}",
        f"{expected.up_mbit.mean:.1f}",
    ]


def _settings(inputs: Inputs, candidate: Candidate) -> str:
    return (
        f"{' and '.join(candidate.names(inputs))}, --rows {candidate.rows}, "
        f"--width {candidate.width}"
    )


def _range(interval: Interval) -> str:
    return f"{interval.low:.2f}–{interval.high:.2f}"
