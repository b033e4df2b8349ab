"""Checks of single fields; each raises a ProtocolError that names the field."""

import math
from typing import Any

from wanspec_kernels.wire.errors import LimitExceeded, MalformedMessage
from wanspec_kernels.wire.limits import MAX_TEXT_BYTES, MAX_TOKEN_ID

INT_ONLY = {int}


def shown(value: object, max_chars: int = 40) -> str:
    """A short printable account of a value that a peer may have chosen."""
    if isinstance(value, str | bytes | int | float | bool | None):
        # Cut before repr, which is as long as the value.
        text = ascii(value[:max_chars] if isinstance(value, str | bytes) else value)
        return text if len(text) <= max_chars else text[: max_chars - 3] + "..."
    return type(value).__name__


def integer(name: str, value: Any, low: int, high: int) -> None:
    if type(value) is not int:  # a bool is no number here
        raise MalformedMessage(f"{name}: expected an integer, got {shown(value)}")
    if not low <= value <= high:
        raise MalformedMessage(f"{name}: expected {low}..{high}, got {value}")


def number(name: str, value: Any) -> float:
    if type(value) is not float and type(value) is not int:
        raise MalformedMessage(f"{name}: expected a number, got {shown(value)}")
    if not math.isfinite(value):
        raise MalformedMessage(f"{name}: expected a finite number, got {value}")
    return value


def boolean(name: str, value: Any) -> None:
    if type(value) is not bool:
        raise MalformedMessage(f"{name}: expected true or false, got {shown(value)}")


def text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise MalformedMessage(f"{name}: expected a string, got {shown(value)}")
    # Texts end up in logs: a line break or an escape sequence there would be the peer's writing.
    if not value.isprintable():
        raise MalformedMessage(f"{name}: expected printable text, got {shown(value)}")
    size = len(value.encode())
    if size > MAX_TEXT_BYTES:
        raise LimitExceeded(f"{name}: expected at most {MAX_TEXT_BYTES} bytes, got {size}")


def integers(
    name: str, values: Any, low: int, high: int, *, min_count: int, max_count: int
) -> None:
    """A tuple of `min_count`..`max_count` integers, each `low`..`high`."""
    if type(values) is not tuple:
        raise MalformedMessage(f"{name}: expected a tuple, got {shown(values)}")
    count(name, len(values), min_count, max_count)
    if not values:
        return
    if set(map(type, values)) != INT_ONLY:
        raise MalformedMessage(f"{name}: expected integers only")
    for extreme in (min(values), max(values)):
        if not low <= extreme <= high:
            raise MalformedMessage(f"{name}: expected entries in {low}..{high}, got {extreme}")


def tokens(name: str, values: Any, *, min_count: int, max_count: int) -> None:
    integers(name, values, 0, MAX_TOKEN_ID, min_count=min_count, max_count=max_count)


def count(name: str, got: int, low: int, high: int) -> None:
    if got > high:
        raise LimitExceeded(f"{name}: expected at most {high} entries, got {got}")
    if got < low:
        raise MalformedMessage(f"{name}: expected at least {low} entries, got {got}")
