"""`wanspec keygen`."""

from pathlib import Path
from typing import Annotated

import typer

from wanspec_kernels.command_line import existing_folder, fail
from wanspec_kernels.wire import keys


def keygen(
    name: Annotated[
        str,
        typer.Argument(help="Whose keys these are, such as verifier or my-university."),
    ],
    folder: Annotated[
        Path,
        typer.Option(
            parser=existing_folder,
            metavar="FOLDER",
            help="The folder where NAME.key and NAME.secret are written.",
        ),
    ] = Path(),
) -> None:
    """Make the two keys by which a verifier and its drafters know each other.

    NAME.key is public: give it to the other side. NAME.secret must stay where it is. Nothing is
    ever overwritten.
    """
    try:
        secret = keys.generate(folder, name)
    except (OSError, ValueError) as error:
        fail(error)
    typer.echo(f"{secret.with_suffix('.key')} is public: give it to the other side")
    typer.echo(f"{secret} is secret: keep it here")
