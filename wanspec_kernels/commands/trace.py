"""`wanspec trace`."""

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from wanspec_kernels.command_line import (
    INTERRUPTED,
    existing_file,
    fail,
    naming,
    output_file,
    whole,
)
from wanspec_kernels.commands.options import (
    DeviceOption,
    TargetOption,
    Temperature,
    sampling_of,
)
from wanspec_kernels.commands.progress import progress_bar


def trace(
    output: Annotated[
        Path,
        typer.Argument(
            parser=output_file, metavar="OUTPUT", help="The file to write, such as pair.npz."
        ),
    ],
    model: TargetOption = "bundled:target",
    draft: Annotated[
        str,
        typer.Option(help="The draft model: a folder, the name of a hub model or bundled:draft."),
    ] = "bundled:draft",
    prompts: Annotated[
        Path | None,
        typer.Option(
            parser=existing_file,
            metavar="FILE",
            help='A JSON file with the prompts, as [{"text": "…"}, …]. Without it these are the '
            "functions of `wanspec demo`.",
        ),
    ] = None,
    tokens: Annotated[int, whole("The target writes this many tokens after each prompt.", 1)] = 256,
    temperature: Temperature = 0.6,
    seeds: Annotated[
        int, whole("The target continues each prompt this many times, each with another seed.", 1)
    ] = 4,
    device: DeviceOption = "auto",
) -> None:
    """Record what a draft model proposes along texts that a target model writes.

    `wanspec simulate` and `wanspec plan` play the file back, so they need neither model. If you
    stop this command with Ctrl-C, the file gets the texts that were complete.
    """
    sampling_of(temperature=temperature)
    texts = _prompts(prompts)

    from wanspec_kernels.assembly import Pair, VocabularyMismatchError
    from wanspec_kernels.models import resolve_device, resolve_model
    from wanspec_kernels.recording import Recording, record

    with naming("--device"):
        resolve_device(device)
    with naming("--model"):
        resolve_model(model)
    with naming("--draft"):
        resolve_model(draft)
    try:
        pair = Pair.load(model, draft, device)
    except VocabularyMismatchError as error:
        fail(f"--draft: {error}")
    except ValueError as error:
        fail(error)
    assert pair.home is not None
    tokenizer = pair.target.tokenizer
    token_ids = [tokenizer(text, verbose=False)["input_ids"] for text in texts]
    longest = pair.target.max_length - tokens
    for number, prompt in enumerate(token_ids, 1):
        if not 1 <= len(prompt) <= longest:
            fail(
                f"--prompts: expected prompts of 1 to {longest} tokens, which leaves the target "
                f"room for --tokens {tokens}, got {len(prompt)} in prompt {number}"
            )
    recording = Recording(pair.home, temperature)
    wanted = len(texts) * seeds
    stopped = False
    with progress_bar() as progress:
        try:
            record(
                recording,
                pair.target,
                token_ids,
                tokens=tokens,
                seeds=range(seeds),
                progress=lambda share: progress(
                    share, f"text {min(recording.num_texts + 1, wanted)} of {wanted}"
                ),
            )
        except KeyboardInterrupt:
            stopped = True
        except (ValueError, RuntimeError) as error:
            fail(error)
    if not recording.num_texts:
        fail("interrupted before the first text was complete: nothing is written", INTERRUPTED)
    about = {"target": model, "draft": draft, "temperature": temperature, "rule": "match"}
    recorded = recording.trace(about)
    _save(recorded, output)
    tops = ", ".join(f"{k} in {recorded.top(k):.1%}" for k in (1, 2, 4, 8))
    typer.echo(
        f"{output} has {recording.num_texts} texts of {wanted} and {len(recorded.token_ids)} "
        f"positions. The target's token is among the draft's likeliest {tops} of them."
    )
    if stopped:
        fail(f"interrupted: {output} holds what was recorded until then", INTERRUPTED)


def _prompts(path: Path | None) -> list[str]:
    source = path or files("wanspec_kernels.bundled") / "prompts.json"
    expected = f'--prompts: expected a JSON list of {{"text": "…"}}, got {path}'
    try:
        entries = json.loads(source.read_bytes())
    except OSError as error:
        fail(f"--prompts: {path}: {error.strerror}")
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or a bomb
        fail(f"{expected}: {error}")
    listed = entries if isinstance(entries, list) else []
    found = [entry.get("text") if isinstance(entry, dict) else None for entry in listed]
    texts = [text for text in found if isinstance(text, str)]
    if not texts or len(texts) < len(found):
        fail(f"{expected}, which is another kind of JSON")
    return texts


def _save(recorded: Any, output: Path) -> None:
    """Whole or not at all: what stood there stays until the new file is complete."""
    partial = output.with_name(f"{output.name}.partial")
    try:
        recorded.save(partial)
        os.replace(partial, output)
    except OSError as error:
        fail(f"OUTPUT: {output}: {error.strerror}")
    finally:
        partial.unlink(missing_ok=True)
