"""`wanspec simulate`."""

import json
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from wanspec_kernels.commands.failure import fail


class PolicyName(StrEnum):
    never_local = "never-local"
    always_local = "always-local"
    entropy_gate = "entropy-gate"
    expected_gain = "expected-gain"


def simulate(
    trace: Annotated[
        str, typer.Option(help="bundled, synthetic:0.8, or a file of `wanspec trace`.")
    ] = "bundled",
    round_trip_ms: Annotated[str, typer.Option(help="Of each drafter's link, with commas.")] = "30",
    policy: PolicyName = PolicyName.expected_gain,
    home_passes: Annotated[
        int, typer.Option(min=1, help="A round, of always-local and entropy-gate.")
    ] = 5,
    pass_price: Annotated[
        float | None, typer.Option(min=0.0, help="Tokens a home pass costs, of expected-gain.")
    ] = None,
    jitter_ms: Annotated[float, typer.Option(min=0.0)] = 0.0,
    bandwidth_mbit: Annotated[float | None, typer.Option(min=0.001)] = None,
    loss: Annotated[float, typer.Option(min=0.0, max=0.9, help="Of a message; TCP resends.")] = 0.0,
    stall_ms: Annotated[float, typer.Option(min=0.0, help="Every --stall-every-ms.")] = 0.0,
    stall_every_ms: Annotated[float, typer.Option(min=1.0)] = 20_000.0,
    target_pass_ms: Annotated[float, typer.Option(min=0.01)] = 30.0,
    target_row_ms: Annotated[float, typer.Option(min=0.0, help="Of each row more.")] = 0.0,
    home_pass_ms: Annotated[float, typer.Option(min=0.01)] = 3.0,
    remote_pass_ms: Annotated[float, typer.Option(min=0.01)] = 4.0,
    max_rows: Annotated[int, typer.Option(min=1, max=1024, help="Of a verified tree.")] = 64,
    requests: Annotated[int, typer.Option(min=1)] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="Of each request.")] = 1000,
    seed: int = 0,
    baselines: Annotated[bool, typer.Option(help="Tune co-located speculation, too.")] = True,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object only.")] = False,
) -> None:
    """Decode in virtual time, with the verifier's and the drafters' own state machines."""
    from wanspec_kernels.simulation import measures
    from wanspec_kernels.simulation.link import LinkProfile
    from wanspec_kernels.simulation.scenario import DrafterProfile, Machine, Scenario
    from wanspec_kernels.simulation.traces import load
    from wanspec_kernels.verifier.request import Limits

    try:
        round_trips = [float(part) for part in round_trip_ms.split(",") if part.strip()]
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
        scenario = Scenario(
            load(trace),
            tuple(DrafterProfile(link, Machine(remote_pass_ms)) for link in links),
            policy=_policy(policy, home_passes, pass_price),
            target=Machine(target_pass_ms, target_row_ms),
            home=Machine(home_pass_ms),
            limits=Limits(max_rows=max_rows),
            requests=requests,
            tokens=tokens,
            seed=seed,
        )
    except (OSError, ValueError) as error:
        fail(str(error))
    console = Console(stderr=json_, highlight=False)
    report: dict[str, Any] = {"seed": seed, "trace": scenario.trace.about, "policy": policy.value}

    def run(name: str, what: str, call: Callable[[], Any]) -> Any:
        with console.status(what):
            found = call()
        report[name] = asdict(found)
        return found

    ours = run("measures", "the scenario", lambda: measures.measure(scenario))
    if baselines:
        tree = run("best_tree", "the best tree", lambda: measures.best_tree(scenario)).measures
        run("best_chain", "the best chain", lambda: measures.best_chain(scenario))
        run("plain", "the target alone", lambda: measures.plain(scenario))
        report["latency_ratio"] = ours.latency_ms / tree.latency_ms
        report["local_passes_ratio"] = ours.local_passes / tree.local_passes
    if json_:
        print(json.dumps(report))
    else:
        console.print(_table(report))
    if not ours.exact:
        fail("a text differs from the target's own", status=1)


def _policy(name: PolicyName, passes: int, price: float | None) -> Any:
    from wanspec_kernels.verifier.policies import AlwaysLocal, EntropyGate, ExpectedGain, NeverLocal

    match name:
        case PolicyName.never_local:
            return NeverLocal()
        case PolicyName.always_local:
            return AlwaysLocal(passes)
        case PolicyName.entropy_gate:
            return EntropyGate(passes=passes)
        case PolicyName.expected_gain:
            return ExpectedGain() if price is None else ExpectedGain(pass_price=price)


_LINES = (
    ("latency, ms a token", "latency_ms", "{:.2f}"),
    ("95th percentile", "p95_ms", "{:.1f}"),
    ("draft passes at home a token", "local_passes", "{:.3f}"),
    ("of those, while the target ran", "ahead_passes", "{:.3f}"),
    ("tokens a target pass", "tokens_per_pass", "{:.2f}"),
    ("rows a target pass", "rows_per_pass", "{:.1f}"),
    ("target passes without home", "hit_rate", "{:.0%}"),
    ("waited, ms a token", "waited_ms", "{:.2f}"),
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
    table = Table(title=f"wanspec simulate: {report['policy']}, seed {report['seed']}")
    table.add_column("")
    for title, _ in columns:
        table.add_column(title, justify="right")
    for line, key, form in _LINES:
        table.add_row(line, *(form.format(values[key]) for _, values in columns))
    return table
