"""Mutations: frames as nobody should send them, from nearly right to nonsense."""

import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgpack

from wanspec_kernels.wire import (
    MAX_MESSAGE_BYTES,
    VERSION,
    Close,
    Commit,
    Draft,
    Error,
    Expansion,
    Hello,
    Message,
    Open,
    Ping,
    Pong,
    Welcome,
    encode,
)

NUMBERS = (0, 1, -1, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
NUMBERS += (2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63))
LENGTHS = (0, 1, 2, 3, 4, 6, 31, 32, 33, 255, 256, 1023, 1024, 1025, 4096)


def every_message() -> tuple[Message, ...]:
    """One of each type, and DRAFTs of several shapes."""
    tokens, parents = (7, 8, 9, 7, 7), (-1, -1, 0, 1, 3)
    drawn = (
        Expansion(-1, (0, 1, 0), (7, 8, 50), (40000, 20000, 5536)),
        Expansion(0, (2,), (9,), (1,)),
    )
    chain = tuple(node - 1 if node % 64 else -1 for node in range(256))
    return (
        Hello(bytes(range(32)), "bundled:draft", 16, 256, 12345),
        Welcome(12345, 99, 1000, MAX_MESSAGE_BYTES),
        Open(3, (10, 11, 12), "match", 0.7, 40, 0.9, 0.05, -5, 256, 32, 0, False),
        Open(3, (10, 11, 12), "rejection", 1.0, 0, 1.0, 0.0, None, 256, 32, 4, True),
        Draft(3, 5, 7, (), ()),
        Draft(3, 5, 7, tokens, parents, (), bytes(5)),
        Draft(3, 5, 7, tokens, parents, drawn),
        Draft(3, 5, 7, tuple(range(256)), chain, (), bytes(range(256))),
        Commit(3, 9, (1, 2, 3), 77),
        Close(3, "yielding"),
        Ping(2**40, 31_000),
        Pong(2**40, 2**41),
        Error("capacity", "no room", 3),
        Error("internal", "über", None),
    )


KEYS = tuple(sorted({key for m in every_message() for key in msgpack.unpackb(encode(m))} | {"v"}))


def mutation(rng: Random, messages: Sequence[Message]) -> bytes:
    """A frame of one to three messages, after some changes of its structure or its bytes."""
    body = b""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _changed(rng, msgpack.unpackb(encode(rng.choice(messages))))
        length = len(data) if rng.random() < 0.95 else rng.choice(NUMBERS) % 2**32
        body += length.to_bytes(4, "little") + data
    frame: dict[Any, Any] = {"v": VERSION, "m": body}
    return _changed(rng, frame) if rng.random() < 0.2 else bytes(_pack(rng, frame))


def _changed(rng: Random, fields: dict[Any, Any]) -> bytes:
    """A map after up to three changes of its structure, and as bytes after some more."""
    if rng.random() < 0.5:
        for _ in range(rng.randint(1, 3)):
            rng.choice(STRUCTURE)(rng, fields)
    data = bytearray(_pack(rng, fields))
    if rng.random() < 0.6:
        for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
            rng.choice(BYTES)(rng, data)
    return bytes(data)


def anything(rng: Random, depth: int = 0) -> Any:
    """A value that msgpack has a form for, nested or not."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        return rng.choice((None, True, False, 0.0, -1.5, 1e300, float("nan"), float("inf")))
    if kind == 2:
        return rng.randbytes(rng.choice(LENGTHS))
    if kind == 3:
        return rng.choice("aé\n\x1b\u202e😀") * rng.choice(LENGTHS)
    if kind == 4:
        return rng.choice((rng.choice(KEYS), "match", "rejection", "draft", "hello"))
    if kind == 5:
        return msgpack.ExtType(rng.randrange(128), rng.randbytes(rng.choice((0, 1, 4, 8, 100))))
    if kind == 6:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {rng.choice(KEYS): anything(rng, depth + 1) for _ in range(rng.randrange(4))}
    return rng.uniform(-2, 2)


def _pack(rng: Random, fields: dict[Any, Any]) -> bytes:
    pairs = list(fields.items())
    if rng.random() < 0.1:
        rng.shuffle(pairs)
    if rng.random() < 0.05 and pairs:
        pairs.append(rng.choice(pairs))  # a key twice
    packer = msgpack.Packer()
    parts = [packer.pack_map_header(len(pairs))]
    for pair in pairs:
        parts += [packer.pack(part) for part in pair]
    return b"".join(parts)


def _replace(rng: Random, fields: dict[Any, Any]) -> None:
    if fields:
        fields[rng.choice(list(fields))] = anything(rng)


def _nudge(rng: Random, fields: dict[Any, Any]) -> None:
    """A number, a little or to an edge."""
    names = [name for name, value in fields.items() if type(value) is int]
    if names:
        name = rng.choice(names)
        value = fields[name] + rng.choice((-1, 1, 2, -2))
        fields[name] = value if -(2**63) <= value < 2**64 and rng.random() < 0.5 else 0
        if rng.random() < 0.5:
            fields[name] = rng.choice(NUMBERS)


def _edit_array(rng: Random, fields: dict[Any, Any]) -> None:
    """A few entries of a byte string, or its length."""
    names = [name for name, value in fields.items() if type(value) is bytes]
    if not names:
        return
    name = rng.choice(names)
    data = bytearray(fields[name])
    for _ in range(rng.randint(1, 4)):
        form = rng.choice(("<B", "<H", "<h", "<I"))
        size = struct.calcsize(form)
        if len(data) >= size and rng.random() < 0.8:
            at = rng.randrange(len(data) - size + 1) // size * size
            number = rng.choice(NUMBERS) % 2 ** (8 * size)
            data[at : at + size] = number.to_bytes(size, "little")
        elif rng.random() < 0.5:
            del data[rng.randrange(len(data) + 1) :]
        else:
            data += data[: rng.choice(LENGTHS)] or rng.randbytes(rng.choice(LENGTHS))
    fields[name] = bytes(data)


def _drop(rng: Random, fields: dict[Any, Any]) -> None:
    if fields:
        del fields[rng.choice(list(fields))]


def _add(rng: Random, fields: dict[Any, Any]) -> None:
    fields[rng.choice((*KEYS, "zz", 1, b"v"))] = anything(rng)


def _swap(rng: Random, fields: dict[Any, Any]) -> None:
    if fields:
        a, b = rng.choice(list(fields)), rng.choice(list(fields))
        fields[a], fields[b] = fields[b], fields[a]


def _flip(rng: Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0x90, 0xC1, 0xDD, 0xFF))


def _cut(rng: Random, data: bytearray) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _insert(rng: Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice((rng.randbytes(rng.randint(1, 8)), b"\x91" * 300, b"\x81\xa1v" * 100))


def _repeat(rng: Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = data[at : at + rng.choice(LENGTHS)]


Structure = Callable[[Random, dict[Any, Any]], None]
Bytes = Callable[[Random, bytearray], None]
STRUCTURE: tuple[Structure, ...] = (_replace, _nudge, _nudge, _edit_array, _edit_array, _drop, _add)
STRUCTURE += (_swap,)
BYTES: tuple[Bytes, ...] = (_flip, _flip, _set, _cut, _insert, _repeat)
