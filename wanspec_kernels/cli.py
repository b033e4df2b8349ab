"""`wanspec`: the command line of the serving side."""

import asyncio
import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from wanspec_kernels import keys
from wanspec_kernels.commands import probe
from wanspec_kernels.commands.failure import fail
from wanspec_kernels.commands.plan import plan
from wanspec_kernels.commands.simulate import simulate
from wanspec_kernels.commands.trace import trace
from wanspec_kernels.text_stream import TextStream

app = typer.Typer(
    help="Speculative decoding with drafters across the internet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


app.command()(trace)
app.command()(simulate)
app.command()(plan)
app.add_typer(probe.app, name="probe")


class Rule(StrEnum):
    match = "match"
    rejection = "rejection"


Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
Seed = Annotated[int, typer.Option(help="Same prompt and seed, same text.")]
RuleOption = Annotated[Rule, typer.Option(help="How drafts are accepted; both are exact.")]
Model = Annotated[str, typer.Option(help="Hub name or folder of the target.")]


@app.command()
def keygen(
    name: Annotated[str, typer.Argument(help="Whose keys, such as verifier or my-university.")],
    folder: Annotated[Path, typer.Option(help="Where NAME.key and NAME.secret go.")] = Path(),
) -> None:
    """Make a CURVE key pair: NAME.key may be handed out, NAME.secret stays where it is."""
    try:
        secret = keys.generate(folder, name)
    except (OSError, ValueError) as error:
        fail(str(error))
    typer.echo(f"{secret.with_suffix('.key')}  public: give it to the other side")
    typer.echo(f"{secret}  secret: keep it here")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads standard input.")],
    model: Model = "bundled:target",
    home_draft: Annotated[
        str, typer.Option(help="Draft model beside the target; empty for none.")
    ] = "bundled:draft",
    bind: Annotated[
        str | None, typer.Option(help="Where drafters dial in, such as tcp://*:5555.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="With --bind: our NAME.secret.")] = None,
    allowed: Annotated[
        Path | None, typer.Option(help="With --bind: the folder of drafters' NAME.key files.")
    ] = None,
    wait_for_drafters: Annotated[
        int, typer.Option(min=0, help="Begin only once so many have dialled in.")
    ] = 0,
    max_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Temperature = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="0 is off.")] = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: Seed = 0,
    rule: RuleOption = Rule.match,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Continue a prompt, with whichever drafters dial in; the text goes to standard output."""
    from wanspec_kernels.assembly import Pair

    if bind is not None and (key is None or allowed is None):
        fail("--bind: expected --key and --allowed with it")
    if wait_for_drafters and bind is None:
        fail("--wait-for-drafters: expected --bind with it")
    text = sys.stdin.read() if prompt == "-" else prompt
    try:
        # The keys first: a large model takes minutes to load.
        secret = keys.load_secret(key) if key else None
        allow_list = keys.AllowList(allowed) if allowed else None
        pair = Pair.load(model, home_draft or None, device)
    except (OSError, ValueError) as error:
        fail(str(error))

    stream = TextStream(pair.target.tokenizer)

    def show(token_ids: Sequence[int], _: Sequence[int | None]) -> None:
        print("".join(map(stream.push, token_ids)), end="", flush=True)

    async def run() -> None:
        tokenizer = pair.target.tokenizer
        service = pair.service(pair.decoder(), bind=bind, secret=secret, allowed=allow_list)
        async with service:
            if bind is not None:
                print(f"drafters may dial {service.address}", file=sys.stderr)
            if wait_for_drafters:
                print(f"waiting for {wait_for_drafters} of them", file=sys.stderr)
            while sum(s.ready for s in service.sessions) < wait_for_drafters:
                await asyncio.sleep(0.05)
            result = await service.generate(
                tokenizer(text)["input_ids"],
                max_tokens=max_tokens,
                stop_token_ids=pair.target.end_token_ids,
                rule=rule.value,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                seed=seed,
                on_tokens=show,
            )
        print(stream.flush())
        s, seconds = result.statistics, result.elapsed_ms / 1000
        print(
            f"{s.tokens} tokens in {s.target_passes} target passes and {seconds:.2f} s; "
            f"accepted drafts: {s.remote_tokens_accepted} remote, {s.home_tokens_accepted} home; "
            f"draft passes at home: {s.local_draft_passes}",
            file=sys.stderr,
        )

    try:
        asyncio.run(run())
    except (OSError, ValueError) as error:
        fail(str(error))


@app.command()
def demo(
    temperature: Temperature = 0.6,
    seed: Seed = 0,
    rule: RuleOption = Rule.match,
    max_tokens: Annotated[int, typer.Option(min=1, help="For each prompt.")] = 64,
    drafters: Annotated[int, typer.Option(min=0, max=16, help="Remote drafter processes.")] = 2,
    round_trip_ms: Annotated[
        str, typer.Option(help="Of the drafters' links, with commas; the last serves the rest.")
    ] = "20,60",
    target_pass_ms: Annotated[
        float, typer.Option(min=0.0, help="Least time of a target pass; 30 is a 70B model's.")
    ] = 30.0,
    prompt: Annotated[
        str | None, typer.Option(help="Continue this instead of the held-out functions.")
    ] = None,
    model: Model = "bundled:target",
    draft: Annotated[str, typer.Option(help="Draft model, remote and at home.")] = "bundled:draft",
    device: Annotated[str, typer.Option(help="cpu serves the bundled pair; or cuda.")] = "cpu",
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object only.")] = False,
) -> None:
    """Write Python with drafts from other processes over encrypted, emulated wide-area links."""
    round_trips = _round_trips(round_trip_ms, drafters)
    from wanspec_kernels.demo import display
    from wanspec_kernels.demo.run import Settings, run

    prompts = ((("prompt", prompt),)) if prompt is not None else _held_out_prompts()
    settings = Settings(
        prompts=prompts,
        model=model,
        draft=draft,
        temperature=temperature,
        seed=seed,
        rule=rule.value,
        max_tokens=max_tokens,
        round_trips_ms=round_trips,
        target_pass_ms=target_pass_ms,
        device=device,
    )
    console = Console(stderr=json_, highlight=False)
    if not json_:
        console.print(display.legend(drafters))
    try:
        report = run(
            settings,
            lambda pair: (
                display.Quiet(console)
                if json_
                else display.Terminal(console, pair.target.tokenizer)
            ),
        )
    except (OSError, ValueError, RuntimeError) as error:
        fail(str(error))
    if json_:
        print(json.dumps(report))
    else:
        console.print("\n")
        console.print(display.table(report, target_pass_ms, rule))
    if rule is Rule.match and not report["identical_to_target_alone"]:
        fail("the text differs from the target's own", status=1)


def _held_out_prompts() -> tuple[tuple[str, str], ...]:
    entries = json.loads(files("wanspec_kernels.bundled").joinpath("prompts.json").read_text())
    return tuple((entry["name"], entry["text"]) for entry in entries)


def _round_trips(text: str, count: int) -> tuple[float, ...]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 <= value <= 10_000 for value in values):
        fail(f"--round-trip-ms: expected numbers of ms up to 10000, as in 20,60, got {text!r}")
    return tuple((values + values[-1:] * count)[:count])


if __name__ == "__main__":
    app()
