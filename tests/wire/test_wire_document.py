"""docs/protocol.md is the authority; here it is held to what the code does."""

import re
from pathlib import Path

import msgpack
import pytest

from tests.wire import test_round_trip
from wanspec_kernels.wire import (
    MAX_FRAME_MESSAGES,
    MAX_MESSAGE_BYTES,
    MAX_PLAIN_BYTES,
    VERSION,
    Close,
    Commit,
    Draft,
    Error,
    ErrorCode,
    Expansion,
    Hello,
    Message,
    Open,
    Ping,
    Pong,
    Welcome,
    check_of,
    decode_frame,
    encode,
    encode_frame,
)

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
EVERY_MESSAGE = (
    Hello(bytes(32), "m", 1, 1, 0),
    Welcome(0, 0, 1, 1024),
    Open(**test_round_trip.GOOD_OPEN),  # type: ignore[arg-type]
    Draft(0, 1, 0, (), ()),
    Commit(0, 2, (1,), 0),
    Close(0, ""),
    Ping(0, 0),
    Pong(0, 0),
    Error("internal", ""),
)


def test_the_worked_example() -> None:
    (block,) = re.findall(r"```hex\n(.*?)```", DOCUMENT, re.DOTALL)
    message = Draft(
        request=3,
        base_length=5,
        base_check=check_of([10, 11, 12, 13, 14]),
        token_ids=(7, 8, 9),
        parents=(-1, -1, 0),
        expansions=(Expansion(-1, (0, 1), (7, 8, 50), (40000, 20000, 5536)),),
        confidences=bytes([11, 28, 2]),
    )
    ping, data = Ping(clock_us=7, round_trip_us=0), bytes.fromhex(block)
    assert list(decode_frame(data)) == [message, ping]
    assert encode_frame([message, ping]) == data
    assert f"0x{message.base_check:08x}" in DOCUMENT


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda message: type(message).__name__)
def test_every_key_is_in_the_messages_table(message: Message) -> None:
    tag = type(message).__name__.lower()
    (section,) = re.findall(rf"^### [^\n]*`{tag}`.*?(?=^##)", DOCUMENT, re.DOTALL | re.MULTILINE)
    documented = re.findall(r"^\| `(\w{1,2})` \|", section, re.MULTILINE)
    if tag in ("ping", "pong"):
        documented.remove("pk" if tag == "ping" else "rt")
    fields = msgpack.unpackb(encode(message))
    assert ["t", *documented] == list(fields)


def test_the_bounds_of_a_frame_are_the_codes() -> None:
    assert f"version {VERSION}" in DOCUMENT
    section = DOCUMENT.split("## Encoding")[1].split("### HELLO")[0]
    for bound in (MAX_MESSAGE_BYTES, MAX_FRAME_MESSAGES, MAX_PLAIN_BYTES):
        assert f"{bound:,}" in section
    assert f"above {MAX_PLAIN_BYTES:,} bytes are not read" in DOCUMENT


def test_every_error_code_is_explained() -> None:
    section = DOCUMENT.split("### ERROR")[1].split("## Sequence")[0]
    explained = re.findall(r"^\| `([a-z_]{3,})` \|", section, re.MULTILINE)
    assert explained == list(ErrorCode)
