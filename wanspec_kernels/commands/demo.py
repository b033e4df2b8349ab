"""`wanspec demo`."""

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from wanspec_kernels.command_line import fail, naming, number, numbers, whole
from wanspec_kernels.commands.options import (
    Rule,
    RuleOption,
    Seed,
    TargetOption,
    Temperature,
    sampling_of,
)

if TYPE_CHECKING:
    from wanspec_kernels.demo.observer import Prompt

MAX_ROUND_TRIP_MS = 10_000.0
MAX_REQUESTS = 64


def demo(
    temperature: Temperature = 0.6,
    seed: Seed = 0,
    rule: RuleOption = Rule.match,
    max_tokens: Annotated[
        int, whole("The text after each prompt ends after this many tokens at most.", 1)
    ] = 64,
    requests: Annotated[
        int | None,
        whole(
            "This many texts are written at once. If there are more of them than prompts, prompts "
            "are repeated with other seeds. Without it there is one for each prompt.",
            1,
            MAX_REQUESTS,
        ),
    ] = None,
    drafters: Annotated[int, whole("This many drafter processes run and dial in.", 0, 16)] = 2,
    round_trip_ms: Annotated[
        str,
        typer.Option(
            help="The round trips that the drafters' links are given, in ms, with commas; the "
            "last one serves all further drafters."
        ),
    ] = "20,60",
    target_pass_ms: Annotated[
        float,
        number(
            "A pass of the target takes at least this many ms. The bundled target is tiny; at the "
            "pace of a large one, more rows in a pass cost next to nothing, as on a GPU.",
            0,
            60_000,
        ),
    ] = 100.0,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="The text to continue. Without it these are six functions that the bundled "
            "models have not been trained on."
        ),
    ] = None,
    model: TargetOption = "bundled:target",
    draft: Annotated[
        str, typer.Option(help="The draft model, which remote drafters and home both run.")
    ] = "bundled:draft",
    device: Annotated[
        str,
        typer.Option(help="Where all models run: cpu, which suits the bundled ones, cuda or auto."),
    ] = "cpu",
    json_: Annotated[
        bool, typer.Option("--json", help="Standard output gets one JSON object and no table.")
    ] = False,
) -> None:
    """Show the whole thing on this machine: a target model, drafters, and slow links between them.

    The target writes Python, the ends of several functions at once. Drafters, which are other
    processes here, propose tokens over encrypted connections that are slowed down to a wide-area
    network's; home, the draft model beside the target, proposes some as well. Each token has the
    colour of whoever proposed it. The closing table has totals over all texts, and compares them
    with the same texts written at once by the target alone.

    Of the drafts received, new ones added something and duplicate ones did not. The text had gone
    on before a late draft came, but part of it still fitted; nothing of a stale one did. A foreign
    one belongs to another text.
    """
    round_trips = numbers("--round-trip-ms", round_trip_ms, 0.0, MAX_ROUND_TRIP_MS)
    round_trips = (round_trips + round_trips[-1:] * drafters)[:drafters]
    sampling = sampling_of(temperature=temperature, seed=seed, rule=rule.value)
    if prompt == "":
        fail("--prompt: expected text, got none")

    from wanspec_kernels.assembly import VocabularyMismatchError
    from wanspec_kernels.demo import display
    from wanspec_kernels.demo.observer import Observer
    from wanspec_kernels.demo.panes import Panes
    from wanspec_kernels.demo.run import Settings, run
    from wanspec_kernels.models import resolve_device, resolve_model

    with naming("--device"):
        device = resolve_device(device)
    with naming("--model"):
        resolve_model(model)
    with naming("--draft"):
        resolve_model(draft)
    settings = Settings(
        prompts=_prompts(prompt, requests, seed),
        model=model,
        draft=draft,
        sampling=sampling,
        max_tokens=max_tokens,
        round_trips_ms=round_trips,
        target_pass_ms=target_pass_ms,
        device=device,
    )
    console = Console(stderr=json_, highlight=False)

    def observe() -> Observer:
        if json_:
            return display.Quiet(console, max_tokens)
        console.print(display.legend(drafters))
        return Panes(console) if console.is_terminal else display.Plain(console)

    try:
        report = run(settings, observe)
    except VocabularyMismatchError as error:
        fail(f"--draft: {error}")
    except (OSError, ValueError, RuntimeError) as error:
        fail(error)
    if json_:
        print(json.dumps(report))
    else:
        console.print("\n")
        console.print(display.table(report, target_pass_ms, rule))
    if rule is Rule.match and not report["identical_to_target_alone"]:
        fail("the text differs from the target's own", status=1)


def _prompts(text: str | None, requests: int | None, seed: int) -> "tuple[Prompt, ...]":
    """One for each request; those that repeat a prompt have the seeds after `seed`."""
    from wanspec_kernels.demo.observer import Prompt

    texts = [("prompt", text)] if text is not None else _held_out_prompts()
    count = len(texts) if requests is None else requests
    return tuple(
        Prompt(*texts[number % len(texts)], seed=_wrapped(seed + number // len(texts)))
        for number in range(count)
    )


def _wrapped(seed: int) -> int:
    """The seed after the largest one is the smallest."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


def _held_out_prompts() -> list[tuple[str, str]]:
    entries = json.loads(files("wanspec_kernels.bundled").joinpath("prompts.json").read_text())
    return [(entry["name"], entry["text"]) for entry in entries]
