"""Whatever the bytes: a ProtocolError or a valid message, and little memory."""

import pickle
import tracemalloc
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.wire.message_strategies import messages
from tests.wire.test_round_trip import largest_draft
from wanspec_kernels.wire import (
    MAX_DRAFT_NODES,
    MAX_FRAME_MESSAGES,
    MAX_MESSAGE_BYTES,
    VERSION,
    Draft,
    Expansion,
    LimitExceeded,
    MalformedMessage,
    Message,
    Ping,
    ProtocolError,
    UnsupportedVersion,
    decode,
    decode_frame,
    encode,
)

DRAFT = Draft(3, 5, 7, (7, 8, 9), (-1, -1, 0), (Expansion(-1, (0, 1), (7, 8, 9), (1, 2, 3)),))


def survives(data: bytes) -> Message | None:
    """decode() of anything: only a ProtocolError may come out, and its text may be logged."""
    try:
        message = decode(data)
    except ProtocolError as error:
        text = str(error)
    else:
        text = ""
    if text:
        assert text.isprintable()
        assert len(text) < 400
        return None
    assert decode(encode(message)) == message
    return message


def fields_of(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = msgpack.unpackb(encode(message))
    return fields


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
@example(b"")
def test_random_bytes(data: bytes) -> None:
    survives(data)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=20)
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3)
)


@settings(max_examples=120, deadline=None)
@given(messages, st.data())
def test_a_field_of_another_type_or_value(message: Message, data: st.DataObject) -> None:
    fields = fields_of(message)
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(anything)
    survives(msgpack.packb(fields))


@settings(max_examples=150, deadline=None)
@given(messages)
def test_every_truncation_is_malformed(message: Message) -> None:
    data = encode(message)
    for size in range(len(data)):
        with pytest.raises(MalformedMessage):
            decode(data[:size])
    with pytest.raises(MalformedMessage):
        decode(data + b"\0")


@settings(max_examples=100, deadline=None)
@given(messages, st.data())
def test_flipped_bits(message: Message, data: st.DataObject) -> None:
    wire = bytearray(encode(message))
    for bit in data.draw(st.lists(st.integers(0, 8 * len(wire) - 1), min_size=1, max_size=4)):
        wire[bit // 8] ^= 1 << bit % 8
        survives(bytes(wire))


def test_every_single_bit_of_a_draft() -> None:
    wire = encode(DRAFT)
    for bit in range(8 * len(wire)):
        flipped = bytearray(wire)
        flipped[bit // 8] ^= 1 << bit % 8
        survives(bytes(flipped))


DEEP = 10**5
BOMBS = {
    "nested arrays": b"\x91" * DEEP + b"\xc0",
    "nested empty-ended arrays": b"\x82\xa1v\x01\xa1t" + b"\x91" * DEEP + b"\x90",
    "nested maps": b"\x81\xa1t" * (DEEP // 2) + b"\xc0",
    "nested maps, short": b"\x81\xa1t" * 300 + b"\xc0",
    "wide maps": b"\x8f" + (b"\xa1t" + b"\x8f" * 10) * 15,
    "empty maps": b"\x8f" + b"\xa1t\x80" * 15,
    "empty arrays": b"\x8f" + b"\xa1t\x90" * 15,
    "4 billion entries (array)": b"\xdd\xff\xff\xff\xff",
    "4 billion entries (map)": b"\xdf\xff\xff\xff\xff",
    "100 MB of bytes": b"\x81\xa1t\xc6\x05\xf5\xe1\x00",
    "100 MB of text": b"\x81\xa1t\xdb\x05\xf5\xe1\x00",
    "100 MB of extension": b"\x81\xa1t\xc9\x05\xf5\xe1\x00\x01",
    "array of 65535": b"\xdc\xff\xff" + b"\xc0" * 65535,
    "map of 65535": b"\xde\xff\xff" + b"\xa1t\xc0" * 65535,
    "extension": b"\x81\xa1t\xd4\x05\x00",
    "timestamp": b"\x81\xa1t\xd6\xff\x00\x00\x00\x00",
    "broken timestamp": b"\x81\xa1t\xc7\x05\xff\x00\x00\x00\x00\x00",
    "broken text": b"\x81\xa1\xff\x01",
    "number": b"\x01",
    "reserved": b"\xc1",
    "number as a key": b"\x81\x01\x01",
    "bytes as keys": msgpack.packb({b"v": 1, b"t": "ping"}),
    "key twice": b"\x83\xa1t\xa4ping\xa1t\xa4ping\xa2ck\x01",
    "pickle": pickle.dumps(DRAFT),
    "pickle in a field": msgpack.packb(fields_of(DRAFT) | {"x": pickle.dumps(DRAFT)}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_little_memory(name: str) -> None:
    data = BOMBS[name]
    assert len(data) <= MAX_MESSAGE_BYTES
    survives(data)  # imports and caches are not the bomb's
    tracemalloc.start()
    try:
        assert survives(data) is None
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data) + 100_000
    finally:
        tracemalloc.stop()


def test_size_is_refused_before_anything_is_read() -> None:
    with pytest.raises(LimitExceeded, match="message: expected at most 262144 bytes, got 262145"):
        decode(b"\xc0" * (MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"v": 3}, MalformedMessage, "draft: expected no key 'v'"),
        ({"t": "drift"}, MalformedMessage, "t: expected one of hello, .*, got 'drift'"),
        ({"t": b"draft"}, MalformedMessage, "t: expected one of"),
        ({"zz": 1}, MalformedMessage, "draft: expected no key 'zz'"),
        ({"k": "abcd"}, MalformedMessage, "token_ids: expected bytes, got 'abcd'"),
        ({"k": b"abc"}, MalformedMessage, "token_ids: expected a multiple of 4 bytes, got 3"),
        ({"k": b"\xff" * 12}, MalformedMessage, "token_ids: expected entries in"),
        (
            {"k": b"\0" * (4 * MAX_DRAFT_NODES + 4)},
            LimitExceeded,
            "token_ids: expected at most 1024 bytes, got 1028",
        ),
        ({"p": b"\0" * 2}, MalformedMessage, "parents: expected 3 entries, got 1"),
        ({"x": b"\0" * 5}, MalformedMessage, r"expansions\[0\]: expected 6 bytes, got 5"),
        ({"x": b"\0\0\1\0\1\0"}, MalformedMessage, r"expansions\[0\]: expected 8 bytes, got 0"),
        ({"x": b"\0\0\xff\xff\1\0"}, LimitExceeded, "at most 64 draws from 64 tokens"),
        ({"x": b"\0\0\0\0\0\0" * 5}, LimitExceeded, "expansions: expected at most 4"),
        ({"x": b"\0\0\0\0\0\0" * 1000}, LimitExceeded, "expansions: expected at most 257"),
        ({"w": "abc"}, MalformedMessage, "confidences: expected bytes, got 'abc'"),
        ({"w": b"\0\0"}, MalformedMessage, "confidences: expected 3 or none, got 2"),
    ],
)
def test_what_is_wrong_is_named(
    change: dict[str, Any], kind: type[ProtocolError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        decode(msgpack.packb(fields_of(DRAFT) | change))


def test_missing_keys_are_named() -> None:
    fields = fields_of(DRAFT)
    del fields["k"], fields["p"]
    with pytest.raises(MalformedMessage, match=r"the keys k \(token_ids\), p \(parents\)"):
        decode(msgpack.packb(fields))


def frame_of(*parts: bytes, **change: object) -> bytes:
    body = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    data: bytes = msgpack.packb({"v": VERSION, "m": body} | change)
    return data


def test_a_version_is_read_before_anything_else() -> None:
    """What version 2 said, without frames, and what a later one may say."""
    assert VERSION == 3
    of_version_2 = msgpack.packb({"v": 2, "t": "hello", "vo": bytes(32), "mo": "m", "mr": 1})
    with pytest.raises(UnsupportedVersion, match="v: expected 3, got 2"):
        decode_frame(of_version_2)
    with pytest.raises(UnsupportedVersion, match="v: expected 3, got 4"):
        decode_frame(msgpack.packb({"v": 4, "new": 1}))


def test_a_bad_message_costs_its_frame_no_other() -> None:
    good = encode(Ping(1, 2))
    first, second, third = decode_frame(frame_of(good, b"\xc1", good))
    assert first == third == Ping(1, 2)
    assert isinstance(second, MalformedMessage)


def test_messages_are_decoded_one_by_one() -> None:
    """Who stops reading a frame pays for no more of it."""
    data = frame_of(encode(Ping(1, 2)), encode(largest_draft()))
    list(decode_frame(data))  # caches are not the draft's
    tracemalloc.start()
    try:
        reading = decode_frame(data)
        assert next(reading) == Ping(1, 2)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data)
        assert isinstance(next(reading), Draft)
        assert tracemalloc.get_traced_memory()[1] > 5 * len(data)
    finally:
        tracemalloc.stop()


GOOD = encode(Ping(1, 2))


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (bytes(MAX_MESSAGE_BYTES + 1), LimitExceeded, "frame: expected at most 262144 bytes, got"),
        (b"", MalformedMessage, "frame: expected a msgpack map"),
        (b"\x90", MalformedMessage, "frame: expected a msgpack map"),
        (GOOD, MalformedMessage, "v: expected this key in every map, got none"),
        (frame_of(GOOD, v=True), MalformedMessage, "v: expected a version, got True"),
        (frame_of(GOOD, v=None), MalformedMessage, "v: expected a version"),
        (frame_of(), MalformedMessage, "frame: expected a message, got none"),
        (frame_of(m="abc"), MalformedMessage, "m: expected the messages' bytes, got 'abc'"),
        (frame_of(GOOD, zz=1), MalformedMessage, "frame: expected no key 'zz'"),
        (frame_of(m=b"\1\0\0"), MalformedMessage, "expected a length of 4 bytes, got 3"),
        (frame_of(m=b"\2\0\0\0a"), MalformedMessage, "expected a message of 2 bytes, got 1"),
        (frame_of(m=b"\xff" * 9), MalformedMessage, "expected a message of 4294967295 bytes"),
        (
            frame_of(*[b""] * (MAX_FRAME_MESSAGES + 1)),
            LimitExceeded,
            "frame: expected at most 256 messages, got more",
        ),
        (frame_of(m=bytes(200_000)), LimitExceeded, "at most 256 messages, got more"),
    ],
)
def test_a_bad_head_is_named(data: bytes, kind: type[ProtocolError], message: str) -> None:
    with pytest.raises(kind, match=message):
        decode_frame(data)


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_in_place_of_a_frame_or_in_one_take_little_memory(name: str) -> None:
    for data in (BOMBS[name], frame_of(BOMBS[name], BOMBS[name])):
        for _ in range(2):  # imports and caches are not the bomb's
            tracemalloc.start()
            try:
                with suppress(ProtocolError):
                    assert all(isinstance(found, ProtocolError) for found in decode_frame(data))
                most = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert most < 6 * len(data) + 200_000


def test_a_huge_text_does_not_reach_the_error() -> None:
    fields = fields_of(Ping(1, 2)) | {"t": "\n" * 1000}
    with pytest.raises(MalformedMessage) as raised:
        decode(msgpack.packb(fields))
    assert len(str(raised.value)) < 200
