"""`wanspec generate`."""

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wanspec_kernels.command_line import (
    existing_file,
    existing_folder,
    fail,
    naming,
    shown,
    whole,
)
from wanspec_kernels.commands.options import (
    DeviceOption,
    MinP,
    Rule,
    RuleOption,
    Seed,
    TargetOption,
    Temperature,
    TopK,
    TopP,
    sampling_of,
)
from wanspec_kernels.wire import keys

if TYPE_CHECKING:
    from wanspec_kernels.engine.engine import Engine
    from wanspec_kernels.engine.request import Request
    from wanspec_kernels.engine.stream import Stream

BUNDLED_TARGET, BUNDLED_DRAFT = "bundled:target", "bundled:draft"
STANDARD_INPUT = Path("-")
MAX_AT_ONCE = 256  # requests given to the engine; the others of a long file wait here


def prompt_file_of(value: object) -> Path:
    return STANDARD_INPUT if str(value) == "-" else existing_file(value)


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue; - reads it from standard input.")
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            parser=prompt_file_of,
            metavar="FILE",
            help="A file with several texts to continue, one a line; - is standard input. They "
            "are decoded together and written in the order of the file.",
        ),
    ] = None,
    model: TargetOption = BUNDLED_TARGET,
    home_draft: Annotated[
        str | None,
        typer.Option(
            help="The model that drafts at home, which is on this machine, beside the target; '' "
            "is none. If you do not name one, the bundled target has bundled:draft and any other "
            "target has none."
        ),
    ] = None,
    bind: Annotated[
        str | None,
        typer.Option(
            help="The address where drafters dial in, such as tcp://*:5555. Without it none can."
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            parser=existing_file,
            metavar="FILE",
            help="The verifier's secret key, NAME.secret of `wanspec keygen`; --bind needs it.",
        ),
    ] = None,
    allowed: Annotated[
        Path | None,
        typer.Option(
            parser=existing_folder,
            metavar="FOLDER",
            help="The folder with the NAME.key file of each drafter that may dial in; --bind "
            "needs it.",
        ),
    ] = None,
    wait_for_drafters: Annotated[
        int, whole("The text begins once this many drafters have dialled in.", 0)
    ] = 0,
    rows: Annotated[
        int,
        whole(
            "The target verifies this many tokens, or rows, of one text in one pass at most.",
            1,
            1024,
        ),
    ] = 64,
    max_tokens: Annotated[int, whole("A text ends after this many tokens at most.", 1)] = 256,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="A text ends before this string; you may give several."),
    ] = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: Seed = 0,
    rule: RuleOption = Rule.match,
    device: DeviceOption = "auto",
) -> None:
    """Continue a prompt, or several at once, with a target model and drafters that dial in.

    A drafter is a `wanspec-drafter` process elsewhere, which proposes tokens; the target verifies
    them, so the text stays its own. The text goes to standard output, everything else to standard
    error. Of several texts each follows a line with its number and the prompt's beginning.
    """
    if prompt is None and prompt_file is None:
        fail("PROMPT: expected a value, got none; --prompt-file reads several")
    if prompt is not None and prompt_file is not None:
        fail("--prompt-file: expected no PROMPT beside it")
    if bind is not None and (key is None or allowed is None):
        fail("--bind: expected --key and --allowed with it")
    if bind is None and (key is not None or allowed is not None):
        fail(f"{'--key' if key is not None else '--allowed'}: expected --bind with it")
    if wait_for_drafters and bind is None:
        fail("--wait-for-drafters: expected --bind with it")
    if stop and not all(stop):
        fail("--stop: expected text, got none")
    if prompt is not None:
        prompts = {"PROMPT": _standard_input("PROMPT") if prompt == "-" else prompt}
    else:
        assert prompt_file is not None
        prompts = _lines_of(prompt_file)
    sampling = sampling_of(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        rule=rule.value,
    )

    from wanspec_kernels.assembly import Pair, VocabularyMismatchError
    from wanspec_kernels.commands import waiting
    from wanspec_kernels.engine.request import Request
    from wanspec_kernels.engine.stream import PassFailedError
    from wanspec_kernels.models import resolve_device, resolve_model
    from wanspec_kernels.serving.drafters import check_bind

    # What can be found out at once is, for a large model takes minutes to load.
    with naming("--key"):
        secret = keys.load_secret(key) if key else None
    with naming("--allowed"):
        allow_list = keys.AllowList(allowed) if allowed else None
    with naming("--bind"):
        if bind is not None:
            check_bind(bind)
    with naming("--device"):
        resolve_device(device)
    with naming("--model"):
        resolve_model(model)
    if home_draft is None:
        home_draft = BUNDLED_DRAFT if model == BUNDLED_TARGET else ""
        if not home_draft:
            print("no draft model at home: --home-draft names one", file=sys.stderr)
    with naming("--home-draft"):
        if home_draft:
            resolve_model(home_draft)
    try:
        pair = Pair.load(model, home_draft or None, device)
    except VocabularyMismatchError as error:
        fail(f"--home-draft: {error}; --home-draft '' does without a draft model at home")
    except ValueError as error:
        fail(error)
    longest = pair.target.max_length
    requests = []
    for where, text in prompts.items():
        token_ids = pair.target.tokenizer(text, verbose=False)["input_ids"]
        if not 1 <= len(token_ids) <= longest:
            fail(
                f"{where}: expected 1 to {longest} tokens, which the target takes, got "
                f"{len(token_ids)}"
            )
        requests.append(
            Request(
                tuple(token_ids),
                max_tokens,
                sampling,
                stop_token_ids=pair.target.end_token_ids,
                stop=tuple(stop or ()),
            )
        )

    async def run() -> None:
        engine = pair.engine(bind=bind, secret=secret, allowed=allow_list, max_rows=rows)
        async with engine:
            if bind is not None:
                _say(f"drafters may dial {engine.address}")
                exchange = engine.scheduler.exchange
                await waiting.wait_for_drafters(exchange, engine.address, wait_for_drafters, _say)
            if prompt_file is None:
                await _write_one(engine, requests[0])
            else:
                await _write_several(engine, requests, list(prompts.values()))

    try:
        asyncio.run(run())
    except PassFailedError as error:
        fail(f"{error}: {error.__cause__ or 'its logits are no numbers'}", status=1)
    except (OSError, ValueError) as error:
        fail(error)


async def _write_one(engine: "Engine", request: "Request") -> None:
    """To standard output, as it comes."""
    began_s = time.monotonic()
    stream = engine.submit(request)
    await _write(stream)
    s, seconds = stream.statistics, time.monotonic() - began_s
    _say(
        f"{s.tokens} tokens in {s.target_passes} target passes and {seconds:.2f} s; "
        f"{_drafts_of([stream])}"
    )


async def _write_several(
    engine: "Engine", requests: Sequence["Request"], prompts: Sequence[str]
) -> None:
    """To standard output in their order: the first that is not complete as it comes."""
    began_s = time.monotonic()
    streams: list[Stream] = []
    for number, prompt in enumerate(prompts):
        for request in requests[len(streams) : number + MAX_AT_ONCE]:
            streams.append(engine.submit(request))
        print(f"==> {number + 1}: {shown(prompt)} <==")
        await _write(streams[number])
    seconds = time.monotonic() - began_s
    tokens = sum(stream.statistics.tokens for stream in streams)
    passes = sum(stream.statistics.target_passes for stream in streams)
    _say(
        f"{len(streams)} texts, {tokens} tokens in {seconds:.2f} s; {tokens / passes:.2f} tokens "
        f"for each text in a target pass; {_drafts_of(streams)}"
    )


async def _write(stream: "Stream") -> None:
    async for token in stream:
        print(token.text, end="", flush=True)
    print()


def _drafts_of(streams: Sequence["Stream"]) -> str:
    found = [stream.statistics for stream in streams]
    return (
        f"accepted drafts: {sum(s.remote_tokens_accepted for s in found)} remote, "
        f"{sum(s.home_tokens_accepted for s in found)} home; draft passes at home: "
        f"{sum(s.local_draft_passes for s in found)}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _lines_of(path: Path) -> dict[str, str]:
    """The prompts of a file, by where they stand; empty lines are none."""
    option = "--prompt-file"
    if path == STANDARD_INPUT:
        text = _standard_input(option)
    else:
        try:
            text = _decoded(path.read_bytes(), option, str(path))
        except OSError as error:
            fail(f"{option}: {path}: {error.strerror}")
    lines = enumerate(text.replace("\r\n", "\n").split("\n"), 1)
    found = {f"{option}: line {number}": line for number, line in lines if line.strip()}
    if not found:
        fail(f"{option}: expected a prompt in each line, got none")
    return found


def _standard_input(option: str) -> str:
    return _decoded(sys.stdin.buffer.read(), option, "standard input")


def _decoded(data: bytes, option: str, source: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        fail(f"{option}: expected text in UTF-8 from {source}, got another byte at {error.start}")
