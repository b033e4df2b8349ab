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
from wanspec_kernels.command_line import Command, choice, existing_file, fail, naming, whole
from wanspec_kernels.models import resolve_device, resolve_model
from wanspec_kernels.wire import MAX_DRAFT_NODES, MAX_REQUESTS, MAX_TREE_NODES
from wanspec_kernels.wire.addresses import host_and_port
from wanspec_kernels.wire.keys import load_public, load_secret
from wanspec_kernels.wire.vocabulary import format_fingerprint

log = logging.getLogger("drafter")


class DrafterCommand(Command):
    program = "wanspec-drafter"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@app.command(cls=DrafterCommand)
def main(
    connect: Annotated[str, typer.Option(help="The verifier's address, as tcp://HOST:PORT.")],
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
            parser=existing_file, metavar="FILE", help="The verifier's public key, its NAME.key."
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="The draft model: a folder, the name of a hub model or bundled:draft. It must "
            "have the vocabulary of the verifier's target."
        ),
    ] = "bundled:draft",
    device: Annotated[
        str,
        typer.Option(help="Where the model runs: cpu, cuda or cuda:N; auto takes a GPU if it can."),
    ] = "auto",
    dtype: Annotated[
        Dtype,
        choice(
            "The numbers that the model computes with; auto is float32 on a CPU and bfloat16 on a "
            "GPU.",
            Dtype,
            "DTYPE",
        ),
    ] = Dtype.auto,
    threads: Annotated[
        int,
        whole("The model uses this many threads on a CPU; 0 leaves the choice to torch.", 0, 1024),
    ] = 0,
    max_requests: Annotated[
        int,
        whole("The drafter serves this many requests, or texts, at a time.", 1, MAX_REQUESTS),
    ] = 16,
    max_nodes: Annotated[
        int,
        whole(
            "The tree of proposals for a request has this many nodes, or tokens, at most.",
            1,
            MAX_TREE_NODES,
        ),
    ] = 256,
    width: Annotated[
        int,
        whole(
            "A pass of the model expands this many nodes of a tree; on a GPU 128 costs little more "
            "than 16.",
            1,
            MAX_DRAFT_NODES,
        ),
    ] = GrowthShape.width,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="The log has every detail.")
    ] = False,
) -> None:
    """Lend this machine's draft model to a verifier elsewhere, until SIGTERM or Ctrl-C.

    A verifier is a `wanspec generate` process that writes a text with a large model. The drafter
    dials it, is sent the text so far, and proposes what may come next. It sees the prompts, and
    under the rule `match` it cannot change the text.

    The exit status is 0 if the drafter was stopped; 1 if the model cannot be loaded; and 2 if an
    option or key file is wrong, or the verifier refuses this drafter for good.
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
    with naming("--connect"):
        host_and_port(connect)
    with naming("--key"):
        secret = load_secret(key)
    with naming("--server-key"):
        server_public = load_public(server_key)
    with naming("--device"):
        resolve_device(device)
    with naming("--model"):
        resolve_model(model)
    draft_model = _load(model, device, dtype, threads)
    limits = Limits(max_requests, max_nodes)
    link = Link(
        Session(draft_model, limits=limits, shape=GrowthShape.of_width(width)),
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
        fail(f"refused by {connect}: {refusal}")


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
        fail(f"--model: {name}: {error}", status=1)
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
