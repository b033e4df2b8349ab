"""`wanspec probe`: measure links and endpoints, for `wanspec plan`."""

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from wanspec_kernels.commands.failure import fail

app = typer.Typer(
    help="Measure links and endpoints, for `wanspec plan`; each run appends to a file.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Output = Annotated[Path, typer.Option(help="JSON lines, appended to.")]
Region = Annotated[str, typer.Option(help="Where this machine is, for people and reports.")]


@app.command()
def serve(
    bind: Annotated[str, typer.Option(help="Such as tcp://*:5556.")],
    key: Annotated[Path, typer.Option(help="Our NAME.secret.")],
    allowed: Annotated[Path, typer.Option(help="The folder of drafters' NAME.key files.")],
) -> None:
    """Answer link probes where the verifier is to run, until interrupted.

    The keys are those of the verifier and its drafters:

        wanspec probe serve --bind tcp://*:5556 --key verifier.secret --allowed allowed/
    """
    from wanspec_kernels import keys
    from wanspec_kernels.probing.responder import Responder

    async def run() -> None:
        responder = Responder(bind, secret=keys.load_secret(key), allowed=keys.AllowList(allowed))
        async with responder:
            typer.echo(f"probes may dial {responder.address}", err=True)
            await responder.serve()

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        pass
    except (OSError, ValueError) as error:
        fail(str(error))


@app.command()
def link(
    connect: Annotated[str, typer.Argument(help="Where `wanspec probe serve` is.")],
    key: Annotated[Path, typer.Option(help="Our NAME.secret.")],
    server_key: Annotated[Path, typer.Option(help="The verifier's NAME.key.")],
    output: Output,
    name: Annotated[str, typer.Option(help="The drafter's, as in the plan.")],
    region: Region = "",
    seconds: Annotated[float, typer.Option(min=0.1, max=3600.0)] = 60.0,
    interval_ms: Annotated[float, typer.Option(min=1.0, help="Between two messages.")] = 20.0,
    payload_bytes: Annotated[
        int | None, typer.Option(help="Of a message; a full DRAFT's if not given.")
    ] = None,
) -> None:
    """Measure a link from a drafter's machine to the verifier's, with messages of the real size.

    Round trip and jitter each way from messages that do not wait for each other, then bandwidth
    from messages back to back. Run it at several times of day: records add up.

        wanspec probe link tcp://verifier.example:5556 --key my-university.secret \\
            --server-key verifier.key --name my-university --output links.jsonl
    """
    from wanspec_kernels import keys
    from wanspec_kernels.probing import frames
    from wanspec_kernels.probing.link import LinkProbe, Pacing
    from wanspec_kernels.probing.records import append, percentiles

    try:
        pacing = Pacing(payload_bytes or frames.draft_bytes(), seconds, interval_ms)
        secret, public = keys.load_secret(key), keys.load_public(server_key)
        with (
            LinkProbe(connect, secret=secret, server_public=public) as probe,
            Progress(console=Console(stderr=True), transient=True) as bar,
        ):
            task = bar.add_task("probing", total=1.0)
            record = probe.run(
                pacing,
                name=name,
                region=region,
                progress=lambda share: bar.update(task, completed=share),
            )
        append(output, record)
    except (OSError, ValueError) as error:
        fail(str(error))
    low, high, highest = percentiles(record.round_trips_ms, (50, 95, 99))
    typer.echo(
        f"{name}: {record.payload_bytes} bytes up, {record.reply_bytes} down, "
        f"{len(record.up_ms)} of them, {record.lost} lost: round trip {low:.1f} ms, "
        f"95th percentile {high:.1f}, 99th {highest:.1f}; {record.bandwidth_mbit:.1f} Mbit/s up"
    )


@app.command()
def endpoint(
    url: Annotated[str, typer.Argument(help="Such as https://host/v1.")],
    model: Annotated[str, typer.Option(help="As the endpoint calls it.")],
    region: Region,
    output: Output,
    times: Annotated[int, typer.Option(min=1, help="Requests, one after another.")] = 1,
    every_s: Annotated[float, typer.Option(min=0.0, help="Between the starts of two.")] = 300.0,
    max_tokens: Annotated[int, typer.Option(min=2, max=4096)] = 64,
    prompt: Annotated[str | None, typer.Option(help="A short one of ours if not given.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--completions", help="Which of the two paths.")
    ] = True,
    key_env: Annotated[
        str, typer.Option(help="Environment variable with the API key, if there is one.")
    ] = "OPENAI_API_KEY",
    timeout_s: Annotated[float, typer.Option(min=0.1, max=3600.0, help="Of a request.")] = 60.0,
) -> None:
    """Time an OpenAI-compatible endpoint's stream: first token, then between tokens.

    A day from here, every five minutes:

        wanspec probe endpoint https://host/v1 --model NAME --region eu-north \\
            --output endpoints.jsonl --times 288

    Errors are recorded and the next request goes on; a refusal such as 401 ends it.
    """
    import httpx2

    from wanspec_kernels.probing.endpoint import EndpointRefused, Question, ask
    from wanspec_kernels.probing.records import EndpointRecord, append

    key = os.environ.get(key_env, "").strip()

    async def one() -> EndpointRecord:
        async with httpx2.AsyncClient(timeout=httpx2.Timeout(timeout_s)) as client:
            return await ask(client, question, key=key or None, timeout_s=timeout_s)

    try:
        question = Question(url, model, region, max_tokens=max_tokens, chat=chat)
        if prompt is not None:
            question = Question(url, model, region, prompt, max_tokens, chat)
        for number in range(times):
            began = time.monotonic()
            record = asyncio.run(one())
            append(output, record)
            first = "none" if record.first_ms is None else f"{record.first_ms:.0f} ms"
            failed = f"; {record.error}" if record.error else ""
            typer.echo(
                f"{record.at} {region}: first token {first}, {len(record.gaps_ms)} more{failed}"
            )
            if number + 1 < times:
                time.sleep(max(0.0, every_s - (time.monotonic() - began)))
    except KeyboardInterrupt:
        pass
    except (OSError, ValueError, EndpointRefused) as error:
        fail(str(error))


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(help="Of `wanspec probe endpoint`.")],
    hours: Annotated[int, typer.Option(min=1, max=24, help="Of one row.")] = 24,
) -> None:
    """Percentiles of endpoints' latencies, by region and time."""
    from wanspec_kernels.probing.records import EndpointRecord, load
    from wanspec_kernels.probing.summary import summarise

    try:
        records = [record for path in files for record in load(path, EndpointRecord)]
    except (OSError, ValueError) as error:
        fail(str(error))
    if not records:
        fail("expected records of `wanspec probe endpoint`, found none")
    table = Table(title="first token and between tokens, ms: 50th, 95th, 99th percentile")
    for title in ("region", "model", "from, UTC"):
        table.add_column(title)
    for title in ("asked", "failed", "first token", "between", "tokens a chunk"):
        table.add_column(title, justify="right", no_wrap=title in ("first token", "between"))
    for row in summarise(records, hours):
        table.add_row(
            row.region,
            row.model,
            row.period,
            str(row.requests),
            str(row.errors),
            _figures(row.first_ms),
            _figures(row.gap_ms),
            "?" if row.tokens_per_chunk is None else f"{row.tokens_per_chunk:.2f}",
        )
    Console(highlight=False).print(table)


def _figures(values: tuple[float, ...]) -> str:
    return " / ".join(f"{value:.0f}" for value in values) or "–"
