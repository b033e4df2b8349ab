"""How a command gives up."""

from typing import NoReturn

import typer


def fail(message: str, status: int = 2) -> NoReturn:
    typer.echo(f"wanspec: {message}", err=True)
    raise typer.Exit(status)
