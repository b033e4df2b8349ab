"""Messages to bytes and back: flat msgpack maps with arrays as little-endian byte strings.

Nothing here nests, so a decoder that refuses arrays, extensions and maps in maps needs no recursion
and no memory beyond a small multiple of `MAX_MESSAGE_BYTES`.
"""

from collections.abc import Callable
from struct import Struct, pack, unpack, unpack_from
from typing import Any, NamedTuple, NoReturn

import msgpack

from wanspec_kernels.tree import Expansion
from wanspec_kernels.wire import limits
from wanspec_kernels.wire.checks import shown
from wanspec_kernels.wire.errors import LimitExceeded, MalformedMessage, ProtocolError
from wanspec_kernels.wire.messages import (
    Close,
    Commit,
    Draft,
    Error,
    Hello,
    Message,
    Open,
    Ping,
    Pong,
    Welcome,
)

MAX_FIELDS = 16
EXPANSION_HEAD = Struct("<hHH")  # parent, number of draws, size of the support


def encode(message: Message) -> bytes:
    """The bytes of a message, as a frame carries them."""
    form = _FORMS_BY_CLASS[type(message)]
    fields: dict[str, Any] = {"t": form.tag}
    for key, name, shape in form.fields:
        value = getattr(message, name)
        fields[key] = value if shape is None else shape.pack(value)
    data: bytes = msgpack.packb(fields)
    return data


def decode(data: bytes) -> Message:
    """The message in `data`, which may be anything at all.

    Raises:
        ProtocolError: it is no message of this version; nothing else is raised, whatever the bytes.
    """
    if len(data) > limits.MAX_MESSAGE_BYTES:
        raise LimitExceeded(
            f"message: expected at most {limits.MAX_MESSAGE_BYTES} bytes, got {len(data)}"
        )
    fields = unpack_map("message", data, "t")
    tag = fields.pop("t")
    form = _FORMS.get(tag) if isinstance(tag, str) else None
    if form is None:
        raise MalformedMessage(f"t: expected one of {', '.join(_FORMS)}, got {shown(tag)}")
    if fields.keys() != form.keys:
        _refuse_keys(form, fields.keys())
    values = []
    for key, name, shape in form.fields:
        value = fields[key]
        values.append(value if shape is None else shape.unpack(name, value))
    return form.message(*values)


def unpack_map(what: str, data: bytes, key: str) -> dict[str, Any]:
    """A flat msgpack map that has `key`, the one that is read before all others."""
    try:
        fields = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=limits.MAX_TEXT_BYTES,
            max_bin_len=limits.MAX_MESSAGE_BYTES,
            max_array_len=0,
            max_map_len=MAX_FIELDS,
            max_ext_len=0,
            ext_hook=_refuse_ext,
            object_pairs_hook=_MAPS[key],
        )
    except ProtocolError:
        raise
    except ValueError as error:
        reason = ascii(str(error) or type(error).__name__)
        raise MalformedMessage(f"{what}: expected a msgpack map, got {reason}") from None
    if type(fields) is not dict:
        raise MalformedMessage(f"{what}: expected a msgpack map, got {shown(fields)}")
    return fields


def _map_with(key: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Called for inner maps before outer ones, so that the first map of a bomb is also its last."""

    def read(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if key not in fields:
            raise MalformedMessage(f"{key}: expected this key in every map, got none")
        if len(fields) != len(pairs):
            raise MalformedMessage("map: expected each key once, got one twice")
        return fields

    return read


_MAPS = {key: _map_with(key) for key in ("v", "t")}


def _refuse_ext(code: int, data: bytes) -> NoReturn:
    raise MalformedMessage(f"message: expected no extension types, got {code}")


def _refuse_keys(form: "_Form", keys: Any) -> NoReturn:
    names = {key: name for key, name, _ in form.fields}
    missing = ", ".join(f"{key} ({names[key]})" for key in names if key not in keys)
    if missing:
        raise MalformedMessage(f"{form.tag}: expected the keys {missing}, got none")
    unknown = next(key for key in keys if key not in names)
    raise MalformedMessage(f"{form.tag}: expected no key {shown(unknown)}")


class _Shape(NamedTuple):
    """How a field that msgpack has no form for is put into bytes."""

    pack: Callable[[Any], bytes]
    unpack: Callable[[str, Any], Any]


def _array(code: str, item_bytes: int, max_count: int) -> _Shape:
    def pack_array(values: tuple[int, ...]) -> bytes:
        return pack(f"<{len(values)}{code}", *values)

    def unpack_array(name: str, data: Any) -> tuple[int, ...]:
        _check_bytes(name, data, item_bytes * max_count)
        count, rest = divmod(len(data), item_bytes)
        if rest:
            raise MalformedMessage(
                f"{name}: expected a multiple of {item_bytes} bytes, got {len(data)}"
            )
        return unpack(f"<{count}{code}", data)

    return _Shape(pack_array, unpack_array)


def _check_bytes(name: str, data: Any, max_bytes: int) -> None:
    if type(data) is not bytes:
        raise MalformedMessage(f"{name}: expected bytes, got {shown(data)}")
    if len(data) > max_bytes:
        raise LimitExceeded(f"{name}: expected at most {max_bytes} bytes, got {len(data)}")


def _pack_expansions(expansions: tuple[Expansion, ...]) -> bytes:
    parts = []
    for expansion in expansions:
        d, s = len(expansion.children), len(expansion.token_ids)
        parts.append(EXPANSION_HEAD.pack(expansion.parent, d, s))
        parts.append(
            pack(f"<{d}H{s}I{s}H", *expansion.children, *expansion.token_ids, *expansion.weights)
        )
    return b"".join(parts)


def _unpack_expansions(name: str, data: Any) -> tuple[Expansion, ...]:
    _check_bytes(name, data, limits.MAX_MESSAGE_BYTES)
    expansions: list[Expansion] = []
    at, end = 0, len(data)
    while at < end:
        if len(expansions) > limits.MAX_DRAFT_NODES:
            raise LimitExceeded(f"{name}: expected at most {limits.MAX_DRAFT_NODES + 1}, got more")
        if end - at < EXPANSION_HEAD.size:
            raise MalformedMessage(
                f"{name}[{len(expansions)}]: expected {EXPANSION_HEAD.size} bytes, got {end - at}"
            )
        parent, d, s = EXPANSION_HEAD.unpack_from(data, at)
        at += EXPANSION_HEAD.size
        if d > limits.MAX_DRAWS or s > limits.MAX_SUPPORT:
            raise LimitExceeded(
                f"{name}[{len(expansions)}]: expected at most {limits.MAX_DRAWS} draws from "
                f"{limits.MAX_SUPPORT} tokens, got {d} from {s}"
            )
        size = 2 * d + 6 * s
        if end - at < size:
            raise MalformedMessage(
                f"{name}[{len(expansions)}]: expected {size} bytes, got {end - at}"
            )
        numbers = unpack_from(f"<{d}H{s}I{s}H", data, at)
        at += size
        expansions.append(Expansion(parent, numbers[:d], numbers[d : d + s], numbers[d + s :]))
    return tuple(expansions)


class _Form(NamedTuple):
    tag: str
    message: type[Message]
    fields: tuple[tuple[str, str, _Shape | None], ...]  # key, name, shape; in the class's order
    keys: frozenset[str]


def _form(message: type[Message], *fields: tuple[str, str] | tuple[str, str, _Shape]) -> _Form:
    complete = tuple((key, name, *(shape or (None,))) for key, name, *shape in fields)
    keys = frozenset(key for key, *_ in fields)
    return _Form(message.__name__.lower(), message, complete, keys)


_ALL_FORMS = (
    _form(
        Hello,
        ("vo", "vocabulary"),
        ("mo", "model"),
        ("mr", "max_requests"),
        ("mn", "max_nodes"),
        ("ck", "clock_us"),
    ),
    _form(
        Welcome,
        ("ck", "clock_us"),
        ("pk", "verifier_clock_us"),
        ("hb", "heartbeat_ms"),
        ("mb", "max_message_bytes"),
    ),
    _form(
        Open,
        ("r", "request"),
        ("k", "token_ids", _array("I", 4, limits.MAX_PROMPT_TOKENS)),
        ("ru", "rule"),
        ("te", "temperature"),
        ("tk", "top_k"),
        ("tp", "top_p"),
        ("mp", "min_p"),
        ("se", "seed"),
        ("mn", "max_nodes"),
        ("md", "max_depth"),
        ("nd", "num_draws"),
        ("re", "replacement"),
    ),
    _form(
        Draft,
        ("r", "request"),
        ("n", "base_length"),
        ("c", "base_check"),
        ("k", "token_ids", _array("I", 4, limits.MAX_DRAFT_NODES)),
        ("p", "parents", _array("h", 2, limits.MAX_DRAFT_NODES)),
        ("x", "expansions", _Shape(_pack_expansions, _unpack_expansions)),
        ("w", "confidences"),
    ),
    _form(
        Commit,
        ("r", "request"),
        ("n", "length"),
        ("k", "token_ids", _array("I", 4, limits.MAX_COMMIT_TOKENS)),
        ("c", "check"),
    ),
    _form(Close, ("r", "request"), ("m", "reason")),
    _form(Ping, ("ck", "clock_us"), ("rt", "round_trip_us")),
    _form(Pong, ("ck", "clock_us"), ("pk", "peer_clock_us")),
    _form(Error, ("e", "code"), ("m", "message"), ("r", "request")),
)
_FORMS = {form.tag: form for form in _ALL_FORMS}
_FORMS_BY_CLASS = {form.message: form for form in _ALL_FORMS}
