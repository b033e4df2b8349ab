"""`wanspec trace`."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from wanspec_kernels.commands.failure import fail


def trace(
    output: Annotated[Path, typer.Argument(help="Where the trace goes, such as pair.npz.")],
    model: Annotated[str, typer.Option(help="The target: hub name or folder.")] = "bundled:target",
    draft: Annotated[str, typer.Option(help="The draft model.")] = "bundled:draft",
    prompts: Annotated[
        Path | None,
        typer.Option(help='JSON list of {"text": …}; the demo\'s held-out functions if not given.'),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Of each text.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.6,
    seeds: Annotated[int, typer.Option(min=1, help="Texts of each prompt.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Record what a draft model says along a target's texts, for `wanspec simulate`."""
    from wanspec_kernels.assembly import Pair
    from wanspec_kernels.recording import record

    try:
        text = (prompts or files("wanspec_kernels.bundled") / "prompts.json").read_text()
        entries = [entry["text"] for entry in json.loads(text)]
        pair = Pair.load(model, draft, device)
        assert pair.home is not None
        tokenizer = pair.target.tokenizer
        recorded = record(
            pair.target,
            pair.home,
            [tokenizer(entry)["input_ids"] for entry in entries],
            tokens=tokens,
            temperature=temperature,
            seeds=range(seeds),
            about={"target": model, "draft": draft, "temperature": temperature, "rule": "match"},
            progress=lambda line: typer.echo(line, err=True),
        )
        recorded.save(output)
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(str(error))
    tops = ", ".join(f"top {k} {recorded.top(k):.1%}" for k in (1, 2, 4, 8))
    typer.echo(f"{output}: {len(recorded.token_ids)} positions; the target's token: {tops}")
