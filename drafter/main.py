"""`wanspec-drafter`: lends a machine's draft model to a verifier elsewhere."""

from __future__ import annotations

import logging
import signal
import sys
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import torch
import typer

from drafter.growth import GrowthShape
from drafter.link import Link, Refused
from drafter.model import DraftModel
from drafter.session import Limits, Session
from wanspec_kernels.addresses import host_and_port
from wanspec_kernels.keys import KeyFileError, load_public, load_secret
from wanspec_kernels.protocol import MAX_DRAFT_NODES, MAX_REQUESTS, MAX_TREE_NODES
from wanspec_kernels.vocabulary import format_fingerprint

log = logging.getLogger("drafter")

REFUSED = 2  # exit status: as typer's for a wrong option, another attempt will not help

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@app.command()
def main(
    connect: Annotated[str, typer.Option(help="The verifier, as tcp://HOST:PORT.")],
    key: Annotated[Path, typer.Option(help="This drafter's NAME.secret file.")],
    server_key: Annotated[Path, typer.Option(help="The verifier's NAME.key file.")],
    model: Annotated[
        str, typer.Option(help="A hub id, a folder or a bundled model.")
    ] = "bundled:draft",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[
        Dtype, typer.Option(help="auto: float32 on the CPU, bfloat16 on CUDA.")
    ] = Dtype.auto,
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads of the model, 0 = torch's choice.")
    ] = 0,
    max_requests: Annotated[
        int, typer.Option(min=1, max=MAX_REQUESTS, help="Served at a time.")
    ] = 16,
    max_nodes: Annotated[
        int, typer.Option(min=1, max=MAX_TREE_NODES, help="Of one request's tree.")
    ] = 256,
    width: Annotated[
        int,
        typer.Option(
            min=1, max=MAX_DRAFT_NODES, help="Nodes of a tree that one pass expands; 128 on a GPU."
        ),
    ] = GrowthShape.width,
    verbose: Annotated[bool, typer.Option("--verbose", "-v")] = False,
) -> None:
    """Dial a verifier and draft for it until SIGTERM or Ctrl-C.

    Exit status: 0 stopped, 1 the model cannot be loaded, 2 a wrong option or key file, or the
    verifier refuses this drafter for good.
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # transformers and its HTTP client have much to say.
    logging.getLogger().setLevel(logging.WARNING)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    link: Link | None = None

    def on_signal(number: int, _: FrameType | None) -> None:
        log.info("%s", signal.Signals(number).name)
        if link is None:
            raise SystemExit(0)
        link.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        host_and_port(connect)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--connect") from None
    try:
        secret, server_public = load_secret(key), load_public(server_key)
    except KeyFileError as error:
        raise typer.BadParameter(str(error)) from None
    draft_model = _load(model, device, dtype, threads)
    limits = Limits(max_requests, max_nodes)
    shape = GrowthShape.wide(width) if width > GrowthShape.width else GrowthShape(width)
    link = Link(
        Session(draft_model, limits=limits, shape=shape),
        endpoint=connect,
        secret=secret,
        server_public=server_public,
        vocabulary=draft_model.vocabulary,
        model_name=model,
        max_requests=max_requests,
        max_nodes=max_nodes,
    )
    try:
        link.run()
    except Refused as refusal:
        print(f"refused by {connect}: {refusal}", file=sys.stderr)
        raise typer.Exit(REFUSED) from None


def _load(name: str, device: str, dtype: Dtype, threads: int) -> DraftModel:
    if threads:
        torch.set_num_threads(threads)
    try:
        model = DraftModel.load(
            name,
            device=device,
            dtype=None if dtype == Dtype.auto else getattr(torch, dtype.value),
        )
    except (OSError, ValueError, NotImplementedError, RuntimeError) as error:
        print(f"model {name}: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    log.info(
        "model %s on %s, %d positions, vocabulary %s",
        name,
        model.device,
        model.max_positions,
        format_fingerprint(model.vocabulary),
    )
    return model


if __name__ == "__main__":
    app()
