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

from wanspec_kernels.command_line import (
    Command,
    Group,
    describe,
    existing_file,
    existing_folder,
    fail,
    naming,
    number,
    output_file,
    whole,
)

app = typer.Typer(
    cls=Group,
    help="Measure links and endpoints for `wanspec plan`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Output = Annotated[
    Path,
    typer.Option(
        parser=output_file,
        metavar="FILE",
        help="The file of records, a line of JSON each; new ones are added to its end.",
    ),
]
Region = Annotated[
    str, typer.Option(help="The place where this machine is, for people and reports.")
]


@app.command(cls=Command)
def serve(
    bind: Annotated[str, typer.Option(help="The address to listen at, such as tcp://*:5556.")],
    key: Annotated[
        Path,
        typer.Option(
            parser=existing_file,
            metavar="FILE",
            help="The verifier's secret key, NAME.secret of `wanspec keygen`.",
        ),
    ],
    allowed: Annotated[
        Path,
        typer.Option(
            parser=existing_folder,
            metavar="FOLDER",
            help="The folder with the NAME.key file of each drafter that may probe.",
        ),
    ],
) -> None:
    """Answer `wanspec probe link` where the verifier is to run, until you stop it with Ctrl-C.

    The keys are those of the verifier and its drafters:

        wanspec probe serve --bind tcp://*:5556 --key verifier.secret --allowed allowed/
    """
    from wanspec_kernels.probing.responder import Responder
    from wanspec_kernels.wire import keys

    with naming("--key"):
        secret = keys.load_secret(key)
    with naming("--allowed"):
        allow_list = keys.AllowList(allowed)

    async def run() -> None:
        async with Responder(bind, secret=secret, allowed=allow_list) as responder:
            typer.echo(f"probes may dial {responder.address}", err=True)
            await responder.serve()

    with naming("--bind"):
        asyncio.run(run())


@app.command(cls=Command)
def link(
    connect: Annotated[
        str,
        typer.Argument(help="The address of `wanspec probe serve`, as tcp://HOST:PORT."),
    ],
    key: Annotated[
        Path,
        typer.Option(
            parser=existing_file,
            metavar="FILE",
            help="This drafter's secret key, NAME.secret of `wanspec keygen`.",
        ),
    ],
    server_key: Annotated[
        Path,
        typer.Option(
            parser=existing_file,
            metavar="FILE",
            help="The verifier's public key, its NAME.key.",
        ),
    ],
    output: Output,
    name: Annotated[
        str, typer.Option(help="The drafter's name, by which `wanspec plan` finds its records.")
    ],
    region: Region = "",
    seconds: Annotated[
        float,
        number(
            "The delays are measured for this many seconds; the bandwidth comes after.", 0.1, 3600
        ),
    ] = 60.0,
    interval_ms: Annotated[float, number("A message leaves every so many ms.", 1, 10_000)] = 20.0,
    payload_bytes: Annotated[
        int | None,
        whole(
            "Each message has this many bytes; without this option as many as a full message of "
            "drafts.",
            64,
            262_144,
        ),
    ] = None,
) -> None:
    """Measure the link from a drafter's machine to the verifier's, with messages of the real size.

    Messages that do not wait for each other give the round trip and its jitter each way; messages
    back to back give the bandwidth. Run it at several times of day, for records add up.

        wanspec probe link tcp://verifier.example:5556 --key my-university.secret \\
            --server-key verifier.key --name my-university --output links.jsonl
    """
    from wanspec_kernels.probing import frames
    from wanspec_kernels.probing.link import LinkProbe, Pacing
    from wanspec_kernels.probing.records import append, percentiles
    from wanspec_kernels.wire import keys

    if not name:
        fail("--name: expected a drafter's name, got none")
    with naming("--key"):
        secret = keys.load_secret(key)
    with naming("--server-key"):
        public = keys.load_public(server_key)
    try:
        pacing = Pacing(payload_bytes or frames.draft_bytes(), seconds, interval_ms)
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
        fail(error)
    low, high, highest = percentiles(record.round_trips_ms, (50, 95, 99))
    typer.echo(
        f"{name}: {record.payload_bytes} bytes up, {record.reply_bytes} down, "
        f"{len(record.up_ms)} of them, {record.lost} lost: round trip {low:.1f} ms, "
        f"95th percentile {high:.1f}, 99th {highest:.1f}; {record.bandwidth_mbit:.1f} Mbit/s up"
    )


@app.command(cls=Command)
def endpoint(
    url: Annotated[str, typer.Argument(help="The endpoint's address, such as https://host/v1.")],
    model: Annotated[str, typer.Option(help="The model's name, as the endpoint calls it.")],
    region: Region,
    output: Output,
    times: Annotated[int, whole("This many requests are made, one after another.", 1)] = 1,
    every_s: Annotated[
        float, number("This many seconds lie between the starts of two requests.", 0, 86_400)
    ] = 300.0,
    max_tokens: Annotated[int, whole("The endpoint is asked for this many tokens.", 2, 4096)] = 64,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="The prompt that is sent; without this option it is a short one of ours."
        ),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat/--completions",
            help="Which path is asked: /chat/completions, or /completions.",
        ),
    ] = True,
    key_env: Annotated[
        str,
        typer.Option(help="The environment variable that has the API key, if there is one."),
    ] = "OPENAI_API_KEY",
    timeout_s: Annotated[
        float, number("A request is given up after this many seconds.", 0.1, 3600)
    ] = 60.0,
) -> None:
    """Time the stream of an OpenAI-compatible endpoint: its first token, and between tokens.

    This measures a day from here, every five minutes:

        wanspec probe endpoint https://host/v1 --model NAME --region eu-north \\
            --output endpoints.jsonl --times 288

    An error is recorded and the next request goes on; a refusal such as 401 ends the command. What
    was recorded before you stop it with Ctrl-C stays in the file.
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
    except (OSError, ValueError, EndpointRefused) as error:
        fail(error)


@app.command(cls=Command)
def report(
    files: Annotated[
        list[Path], typer.Argument(help="Files of records of `wanspec probe endpoint`.")
    ],
    hours: Annotated[
        int, whole("A row of the table stands for this many hours of a day.", 1, 24)
    ] = 24,
) -> None:
    """Show the percentiles of endpoints' latencies, by region and time of day."""
    from wanspec_kernels.probing.records import EndpointRecord, load
    from wanspec_kernels.probing.summary import summarise

    try:
        records = [record for path in files for record in load(path, EndpointRecord)]
    except (OSError, ValueError) as error:
        fail(f"FILES: {describe(error)}")
    if not records:
        fail("FILES: expected records of `wanspec probe endpoint`, found none")
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
