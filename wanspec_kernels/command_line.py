"""Command lines: what a person types is checked here, and what is wrong with it takes one line.

`wanspec` and `wanspec-drafter` are both made of these. An error goes to standard error as
``PROGRAM: OPTION: expected …, got …`` and ends the program with status 2; Ctrl-C ends it with
status 130.
"""

import errno
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

WRONG = 2  # exit status: what was typed, or a file, is at fault
INTERRUPTED = 130  # exit status, as of a program that SIGINT ends
MAX_SHOWN = 80  # characters of a wrong value


class Failure(Exception):
    """A command gives up; the message is one line for people."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def fail(error: str | Exception, status: int = WRONG) -> NoReturn:
    raise Failure(error if isinstance(error, str) else describe(error), status)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Say which option or file a failure inside is about."""
    try:
        yield
    except (OSError, ValueError) as error:
        fail(f"{what}: {describe(error)}")


def describe(error: Exception) -> str:
    """An error in words; of a system call's, the file and the reason without its number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error) or type(error).__name__


def number(
    help: str, low: float = -math.inf, high: float = math.inf, *, above: float | None = None
) -> Any:
    """An option that takes a finite number from `low` to `high`, or one larger than `above`."""
    bounds = _bounds(low, high, above)

    def parse(value: Any) -> float:
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        too_low = found < low or (above is not None and found <= above)
        if not math.isfinite(found) or too_low or found > high:
            raise typer.BadParameter(f"expected a number {bounds}, got {shown(value)}")
        return found

    return typer.Option(parser=parse, metavar=f"<{bounds}>", help=help)


def whole(help: str, low: int, high: int | None = None) -> Any:
    """An option that takes a whole number from `low` to `high`."""
    bounds = _bounds(low, math.inf if high is None else high)

    def parse(value: Any) -> int:
        try:
            found = int(value)
        except ValueError:  # also of more digits than Python reads
            found = None
        if found is None or found < low or (high is not None and found > high):
            raise typer.BadParameter(f"expected a whole number {bounds}, got {shown(value)}")
        return found

    metavar = bounds if abs(low) < 1 << 53 else "whole number"
    return typer.Option(parser=parse, metavar=f"<{metavar}>", help=help)


def numbers(option: str, text: str, low: float, high: float) -> tuple[float, ...]:
    """The numbers of an option that takes several, with commas."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(low <= value <= high for value in found):
        fail(
            f"{option}: expected numbers with commas between them, each from {low:g} to {high:g}, "
            f"got {shown(text)}"
        )
    return found


def choice(help: str, kind: type[StrEnum], metavar: str) -> Any:
    """An option that takes one of the names of `kind`."""
    names = ", ".join(kind)

    def parse(value: Any) -> StrEnum:
        try:
            return kind(value)
        except ValueError:
            raise typer.BadParameter(f"expected one of {names}, got {shown(value)}") from None

    return typer.Option(parser=parse, metavar=metavar, help=f"{help} It is one of {names}.")


def existing_file(value: Any) -> Path:
    """Parser of an option or argument that names a file to read."""
    path = Path(value)
    if path.is_dir():
        raise typer.BadParameter(f"expected a file, got the folder {shown(value)}")
    if not path.exists():
        raise typer.BadParameter(f"expected a file, got {shown(value)}, which does not exist")
    if not os.access(path, os.R_OK):
        raise typer.BadParameter(f"expected a readable file, got {shown(value)}, which is not")
    return path


def existing_folder(value: Any) -> Path:
    """Parser of an option that names a folder."""
    path = Path(value)
    if not path.is_dir():
        state = "which is a file" if path.exists() else "which does not exist"
        raise typer.BadParameter(f"expected a folder, got {shown(value)}, {state}")
    return path


def output_file(value: Any) -> Path:
    """Parser of an option or argument that names a file to write: found out before the work."""
    path = Path(value)
    if path.is_dir():
        raise typer.BadParameter(f"expected a file to write, got the folder {shown(value)}")
    if not path.parent.is_dir():
        raise typer.BadParameter(
            f"expected a file to write, got {shown(value)}, whose folder does not exist"
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise typer.BadParameter(f"expected a file to write, got {shown(value)}, which cannot be")
    return path


def shown(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…")


class Command(TyperCommand):
    """A command whose errors take one line, and whose texts are UTF-8."""

    program = "wanspec"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.help = _unwrapped(self.help)

    def main(self, *args: Any, **options: Any) -> Any:
        _run(self.program, super().main, *args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _interruptible():
            _require_utf8(ctx)
            return super().invoke(ctx)


class Group(TyperGroup):
    """Commands as `Command`, under one name."""

    program = "wanspec"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.help = _unwrapped(self.help)

    def main(self, *args: Any, **options: Any) -> Any:
        _run(self.program, super().main, *args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _interruptible():
            return super().invoke(ctx)


def _run(program: str, main: Callable[..., Any], *args: Any, **options: Any) -> NoReturn:
    # A text may have characters that the terminal's encoding lacks; it must not end the program.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    status: Any = 0
    try:
        status = main(*args, **(options | {"standalone_mode": False}))
    except Failure as failure:
        message, status = str(failure), failure.status
    except Exception as error:
        # typer's own errors; in some versions it brings a click of its own, so no type is common.
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            sys.exit(WRONG)
        message, status = _message(error), WRONG
    else:
        sys.exit(status if isinstance(status, int) else 0)
    typer.echo(f"{program}: {' '.join(message.split())}", err=True)
    sys.exit(status)


def _message(error: Any) -> str:
    """Name the option first, as all our errors do."""
    parameter = getattr(error, "param", None)
    if parameter is None:
        return str(error.format_message())
    name = max(parameter.opts, key=len)
    what = error.message or "expected a value, got none"
    return f"{name if name.startswith('-') else name.upper()}: {what}"


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Failure("interrupted", INTERRUPTED) from None
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever read our output has gone: typer ends it quietly
            raise
        fail(error)


def _require_utf8(ctx: Any) -> None:
    for parameter in ctx.command.params:
        value = ctx.params.get(parameter.name)
        if type(value) is str:
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise typer.BadParameter(
                    f"expected text in UTF-8, got another byte at character {error.start}",
                    ctx=ctx,
                    param=parameter,
                ) from None


def _bounds(low: float, high: float, above: float | None = None) -> str:
    if above is not None:
        return f"above {above:g}" + (f", up to {high:,g}" if math.isfinite(high) else "")
    if math.isinf(high):
        return f"from {_plain(low)} on"
    return f"from {_plain(low)} to {_plain(high)}"


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _unwrapped(help: str | None) -> str | None:
    """Each paragraph in one line, for some versions of typer keep a docstring's line breaks."""
    if help is None:
        return None
    paragraphs = help.split("\n\n")
    return "\n\n".join(
        text if text.startswith(("\b", " ", "\n")) else " ".join(text.split("\n"))
        for text in paragraphs
    )
