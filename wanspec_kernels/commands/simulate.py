"""`wanspec simulate`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from wanspec_kernels.command_line import choice, fail, naming, number, numbers, whole
from wanspec_kernels.commands.progress import progress_bar

MAX_ROUND_TRIP_MS = 10_000.0
TARGET_PASS_MS, HOME_PASS_MS, REMOTE_PASS_MS = 30.0, 3.0, 4.0


class Machines(StrEnum):
    flat = "flat"
    h200_8b = "h200-8b"


def simulate(
    trace: Annotated[
        str,
        typer.Option(
            help="What the draft model proposes along the target's texts: a file of `wanspec "
            "trace`, bundled, or synthetic:0.8, whose first proposal is right 80 % of the time."
        ),
    ] = "bundled",
    round_trip_ms: Annotated[
        str,
        typer.Option(
            help="The round trip of each remote drafter's link in ms, with commas; '' is no "
            "drafter at all."
        ),
    ] = "30",
    home: Annotated[
        bool,
        typer.Option(help="Whether the draft model also runs beside the target, on its GPU."),
    ] = True,
    share_drafters: Annotated[
        bool,
        typer.Option(
            "--share-drafters",
            help="Each text has one of the remote drafters, in turn. Without this option all of "
            "them draft for every text.",
        ),
    ] = False,
    jitter_ms: Annotated[
        float, number("A message takes up to this many ms longer, each way.", 0, 60_000)
    ] = 0.0,
    bandwidth_mbit: Annotated[
        float | None,
        number("A link carries this many Mbit/s; without this option there is no limit.", above=0),
    ] = None,
    loss: Annotated[float, number("TCP has to send this share of messages again.", 0, 0.9)] = 0.0,
    stall_ms: Annotated[
        float, number("A link stands still for this many ms every --stall-every-ms.", 0, 3_600_000)
    ] = 0.0,
    stall_every_ms: Annotated[
        float, number("This many ms lie between the beginnings of two stalls.", 1)
    ] = 20_000.0,
    machines: Annotated[
        Machines,
        choice(
            "Passes take what the four options below say (flat), or what was measured of an 8B "
            "target on an H200, with draft models of 1B (h200-8b).",
            Machines,
            "MACHINES",
        ),
    ] = Machines.flat,
    target_pass_ms: Annotated[
        float | None,
        number(
            "A pass of the target over one row, or token, takes this many ms; without this option, "
            f"{TARGET_PASS_MS:g}.",
            0.01,
            60_000,
        ),
    ] = None,
    target_row_ms: Annotated[
        float | None,
        number(
            "It takes this many ms more for each row more; without this option, none.", 0, 60_000
        ),
    ] = None,
    home_pass_ms: Annotated[
        float | None,
        number(
            "A pass of the draft model at home takes this many ms; without this option, "
            f"{HOME_PASS_MS:g}.",
            0.01,
            60_000,
        ),
    ] = None,
    remote_pass_ms: Annotated[
        float | None,
        number(
            "A pass of a remote drafter takes this many ms; without this option, "
            f"{REMOTE_PASS_MS:g}.",
            0.01,
            60_000,
        ),
    ] = None,
    remote_rows: Annotated[
        int,
        whole(
            "A pass of a remote drafter expands this many nodes, which its texts share.", 1, 4096
        ),
    ] = 128,
    context: Annotated[
        int,
        whole(
            "Each text has this many tokens before it, which cost time with --machines h200-8b.",
            0,
            1_000_000,
        ),
    ] = 0,
    max_rows: Annotated[
        int,
        whole("The target verifies this many tokens of a text in one pass at most.", 1, 1024),
    ] = 64,
    requests: Annotated[int, whole("This many texts are written at a time.", 1, 256)] = 1,
    tokens: Annotated[int, whole("Each text has this many tokens.", 1)] = 1000,
    seed: Annotated[
        int, whole("Another seed chooses other texts, and other moments of a link.", 0)
    ] = 0,
    baselines: Annotated[
        bool,
        typer.Option(
            help="Whether to tune speculation without remote drafters on the same texts, for "
            "comparison."
        ),
    ] = True,
    json_: Annotated[
        bool, typer.Option("--json", help="Standard output gets one JSON object and no table.")
    ] = False,
) -> None:
    """Say how fast a target and drafters would be over links that you describe.

    Nothing is waited for: the scheduler and the drafters are the real ones, but models, links and
    the clock are simulated. Home is the draft model beside the target; the others are remote.
    """
    from wanspec_kernels.engine.request import Limits
    from wanspec_kernels.simulation import measures
    from wanspec_kernels.simulation.link import LinkProfile
    from wanspec_kernels.simulation.profiles import H200_1B, H200_8B
    from wanspec_kernels.simulation.scenario import DrafterProfile, Machine, Scenario, shape_of
    from wanspec_kernels.simulation.traces import load

    round_trips: tuple[float, ...] = ()
    if round_trip_ms.strip():
        round_trips = numbers("--round-trip-ms", round_trip_ms, 0.0, MAX_ROUND_TRIP_MS)
    if 0 < stall_every_ms <= stall_ms:
        fail(
            f"--stall-ms: expected less than --stall-every-ms {stall_every_ms:g}, got {stall_ms:g}"
        )
    with naming("--trace"):
        recorded = load(trace)
    links = [
        LinkProfile(
            value,
            jitter_ms,
            bandwidth_mbit,
            loss,
            stall_ms=stall_ms,
            stall_every_ms=stall_every_ms,
        )
        for value in round_trips
    ]
    given = {
        "--target-pass-ms": target_pass_ms,
        "--target-row-ms": target_row_ms,
        "--home-pass-ms": home_pass_ms,
        "--remote-pass-ms": remote_pass_ms,
    }
    if machines is Machines.flat:
        target = Machine(target_pass_ms or TARGET_PASS_MS, target_row_ms or 0.0)
        at_home, remote = (
            Machine(home_pass_ms or HOME_PASS_MS),
            Machine(remote_pass_ms or REMOTE_PASS_MS),
        )
    else:
        for option, value in given.items():
            if value is not None:
                fail(f"{option}: expected --machines flat with it, got {machines.value}")
        target, at_home, remote = H200_8B, H200_1B, H200_1B
    seats = -(-requests // max(1, len(links))) if share_drafters else requests
    try:
        scenario = Scenario(
            recorded,
            tuple(DrafterProfile(link, remote, shape_of(remote_rows, seats)) for link in links),
            shares_drafters=share_drafters,
            target=target,
            home=at_home if home else None,
            limits=Limits(max_rows=max_rows),
            requests=requests,
            context=context,
            tokens=tokens,
            seed=seed,
        )
    except ValueError as error:
        fail(error)
    console = Console(stderr=json_, highlight=False)
    report: dict[str, Any] = {"seed": seed, "trace": scenario.trace.about, "requests": requests}

    with progress_bar() as progress:

        def run(name: str, share: float, what: str, call: Callable[[], Any]) -> Any:
            progress(share, what)
            found = call()
            report[name] = asdict(found)
            return found

        ours = run("measures", 0.0, "the scenario", lambda: measures.measure(scenario))
        if baselines:
            alone = replace(scenario, home=at_home)
            tree = run("best_tree", 0.2, "the best tree", lambda: measures.best_tree(alone))
            run("best_chain", 0.9, "the best chain", lambda: measures.best_chain(alone))
            run("plain", 0.98, "the target alone", lambda: measures.plain(scenario))
            report["latency_ratio"] = ours.latency_ms / tree.measures.latency_ms
            report["local_passes_ratio"] = ours.local_passes / tree.measures.local_passes
    if json_:
        print(json.dumps(report))
    else:
        console.print(_table(report))
        console.print(conclusion(report, round_trips))
    if not ours.exact:
        fail("a text differs from the target's own", status=1)


def conclusion(report: dict[str, Any], round_trips_ms: Sequence[float]) -> str:
    """What the figures mean, in a sentence."""
    ours = report["measures"]
    away = " and ".join(f"{ms:g}" for ms in round_trips_ms)
    drafters = "drafters" if len(round_trips_ms) > 1 else "a drafter"
    with_whom = f"With {drafters} {away} ms away" if away else "Without any remote drafter"
    begin = f"{with_whom}, a token takes {ours['latency_ms']:.1f} ms"
    if "plain" not in report:
        return f"{begin}; without --no-baselines you learn what that is worth."
    alone, best = report["plain"], report["best_tree"]["measures"]
    latency_ms, best_ms = ours["latency_ms"], best["latency_ms"]
    return (
        f"{begin}: {alone['latency_ms'] / latency_ms:.1f} times as fast as the target alone, and "
        f"{_compared(best_ms / latency_ms)} the best that a draft model beside the target does by "
        f"itself ({best_ms:.1f} ms), with {ours['local_passes']:.2f} draft passes a token at home "
        f"instead of {best['local_passes']:.2f}."
    )


def _compared(speed: float) -> str:
    if 0.98 <= speed <= 1.02:
        return "as fast as"
    return f"{abs(speed - 1):.0%} {'faster' if speed > 1 else 'slower'} than"


_LINES = (
    ("latency, ms a token", "latency_ms", "{:.2f}"),
    ("95th percentile", "p95_ms", "{:.1f}"),
    ("draft passes at home a token", "local_passes", "{:.3f}"),
    ("tokens a second, all texts", "tokens_per_s", "{:.0f}"),
    ("tokens of a text a target pass", "tokens_per_pass", "{:.2f}"),
    ("rows of a text a target pass", "rows_per_pass", "{:.1f}"),
    ("target passes without home", "hit_rate", "{:.0%}"),
    ("the GPU was idle, ms a token", "waited_ms", "{:.2f}"),
    ("drafted nodes not accepted", "waste", "{:.1%}"),
    ("on the wire, bytes a token", "wire_bytes", "{:.0f}"),
    ("accelerator time here, ms a token", "hot_ms", "{:.2f}"),
)


def _table(report: dict[str, Any]) -> Table:
    columns = [("this", report["measures"])]
    for name in ("best_tree", "best_chain"):
        if name in report:
            best = report[name]
            columns.append((f"{name.replace('_', ' ')}, {best['passes']}", best["measures"]))
    if "plain" in report:
        columns.append(("target alone", report["plain"]))
    table = Table(title=f"wanspec simulate: texts {report['requests']}, seed {report['seed']}")
    table.add_column("")
    for title, _ in columns:
        table.add_column(title, justify="right")
    for line, key, form in _LINES:
        table.add_row(line, *(form.format(values[key]) for _, values in columns))
    return table
