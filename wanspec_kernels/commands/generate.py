"""`wanspec generate`."""

import asyncio
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wanspec_kernels.command_line import choice, existing_file, existing_folder, fail, naming, whole
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
from wanspec_kernels.text_stream import TextStream
from wanspec_kernels.wire import keys

BUNDLED_TARGET, BUNDLED_DRAFT = "bundled:target", "bundled:draft"


class PolicyChoice(StrEnum):
    """Those that `wanspec plan` recommends."""

    expected_gain = "expected-gain"
    entropy_gate = "entropy-gate"
    never_local = "never-local"


def generate(
    prompt: Annotated[
        str, typer.Argument(help="The text to continue; - reads it from standard input.")
    ],
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
    policy: Annotated[
        PolicyChoice,
        choice(
            "The policy decides, when the target falls free, whether to verify what is here, to "
            "wait for drafters or to draft at home; `wanspec plan` says which one fits.",
            PolicyChoice,
            "POLICY",
        ),
    ] = PolicyChoice.expected_gain,
    rows: Annotated[
        int,
        whole("The target verifies this many tokens, or rows, in one pass at most.", 1, 1024),
    ] = 64,
    max_tokens: Annotated[int, whole("The text ends after this many tokens at most.", 1)] = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: Seed = 0,
    rule: RuleOption = Rule.match,
    device: DeviceOption = "auto",
) -> None:
    """Continue a prompt with a target model, helped by drafters that dial in.

    A drafter is a `wanspec-drafter` process elsewhere, which proposes tokens; the target verifies
    them, so the text stays its own. The text goes to standard output, everything else to standard
    error.
    """
    if bind is not None and (key is None or allowed is None):
        fail("--bind: expected --key and --allowed with it")
    if bind is None and (key is not None or allowed is not None):
        fail(f"{'--key' if key is not None else '--allowed'}: expected --bind with it")
    if wait_for_drafters and bind is None:
        fail("--wait-for-drafters: expected --bind with it")
    text = _standard_input() if prompt == "-" else prompt
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
    from wanspec_kernels.models import resolve_device, resolve_model
    from wanspec_kernels.planning.candidates import POLICIES
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
    tokenizer = pair.target.tokenizer
    token_ids = tokenizer(text, verbose=False)["input_ids"]
    longest = pair.target.max_length
    if not 1 <= len(token_ids) <= longest:
        fail(
            f"PROMPT: expected 1 to {longest} tokens, which the target takes, got {len(token_ids)}"
        )

    stream = TextStream(tokenizer)

    def show(token_ids: Sequence[int], _: Sequence[int | None]) -> None:
        print("".join(map(stream.push, token_ids)), end="", flush=True)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    async def run() -> None:
        service = pair.service(
            pair.decoder(),
            bind=bind,
            secret=secret,
            allowed=allow_list,
            max_rows=rows,
            policy=POLICIES[policy.value],
        )
        async with service:
            if bind is not None:
                say(f"drafters may dial {service.address}")
            if allow_list is not None:
                await waiting.wait_for_drafters(service, wait_for_drafters, allow_list, say)
            result = await service.generate(
                token_ids,
                max_tokens=max_tokens,
                stop_token_ids=pair.target.end_token_ids,
                sampling=sampling,
                on_tokens=show,
            )
        print(stream.flush())
        s, seconds = result.statistics, result.elapsed_ms / 1000
        say(
            f"{s.tokens} tokens in {s.target_passes} target passes and {seconds:.2f} s; "
            f"accepted drafts: {s.remote_tokens_accepted} remote, {s.home_tokens_accepted} home; "
            f"draft passes at home: {s.local_draft_passes}"
        )

    try:
        asyncio.run(run())
    except (OSError, ValueError) as error:
        fail(error)


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        fail(
            f"PROMPT: expected text in UTF-8 from standard input, got another byte at {error.start}"
        )
