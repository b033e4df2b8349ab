"""Frames: what one ZeroMQ message carries, which is several messages of the protocol.

A frame is a msgpack map of its version and of one byte string, in which each message follows its
length. So a bad message costs none of the others, and each is decoded when its turn comes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct

import msgpack

from wanspec_kernels.wire import limits
from wanspec_kernels.wire.checks import shown
from wanspec_kernels.wire.codec import decode, encode, unpack_map
from wanspec_kernels.wire.errors import (
    LimitExceeded,
    MalformedMessage,
    ProtocolError,
    UnsupportedVersion,
)
from wanspec_kernels.wire.messages import Message

LENGTH = Struct("<I")  # of the message that follows it
HEAD_BYTES = 11  # at most, of a frame before its first message


@dataclass(frozen=True, slots=True)
class Frame:
    """Some messages and their bytes."""

    data: bytes
    messages: tuple[Message, ...]


class Packer:
    """Puts messages into frames, in their order and as many into each as there is room for.

    A message of more than `shared_bytes` has a frame of its own, as large as the peer reads: it
    would gain nothing by company.
    """

    def __init__(
        self,
        max_bytes: int = limits.MAX_MESSAGE_BYTES,
        shared_bytes: int = limits.MAX_PLAIN_BYTES,
    ) -> None:
        """`max_bytes` of a frame are what the peer reads; WELCOME says so."""
        self._max_bytes = max_bytes
        self._shared_bytes = min(max_bytes, shared_bytes, limits.MAX_PLAIN_BYTES)
        self._frames: list[Frame] = []
        self._parts: list[bytes] = []
        self._messages: list[Message] = []
        self._num_bytes = HEAD_BYTES

    def add(self, message: Message) -> int:
        """The bytes that the message takes; 0: it is left out, as it fits into no frame."""
        part = encode(message)
        num_bytes = LENGTH.size + len(part)
        if HEAD_BYTES + num_bytes > self._max_bytes:
            return 0
        is_full = len(self._messages) == limits.MAX_FRAME_MESSAGES
        if is_full or self._num_bytes + num_bytes > self._shared_bytes:
            self._close()
        self._parts += (LENGTH.pack(len(part)), part)
        self._messages.append(message)
        self._num_bytes += num_bytes
        return num_bytes

    def frames(self) -> list[Frame]:
        """All that was added since the last time."""
        self._close()
        frames, self._frames = self._frames, []
        return frames

    def _close(self) -> None:
        if self._messages:
            self._frames.append(Frame(_join(self._parts), tuple(self._messages)))
            self._parts.clear()
            self._messages.clear()
            self._num_bytes = HEAD_BYTES


def frames_of(
    messages: Iterable[Message], max_bytes: int = limits.MAX_MESSAGE_BYTES
) -> list[Frame]:
    """The messages in as few frames as their order allows.

    Raises:
        LimitExceeded: a message takes more than `max_bytes`, the frame around it included.
    """
    packer = Packer(max_bytes)
    for message in messages:
        if not packer.add(message):
            name = type(message).__name__.upper()
            got = HEAD_BYTES + LENGTH.size + len(encode(message))
            raise LimitExceeded(f"{name}: expected at most {max_bytes} bytes, got {got}")
    return packer.frames()


def encode_frame(messages: Iterable[Message]) -> bytes:
    """All these messages in one frame, however large they are together.

    Raises:
        LimitExceeded: they are too many or too large for one.
    """
    encoded = [encode(message) for message in messages]
    if not 1 <= len(encoded) <= limits.MAX_FRAME_MESSAGES:
        raise LimitExceeded(
            f"frame: expected 1..{limits.MAX_FRAME_MESSAGES} messages, got {len(encoded)}"
        )
    data = _join([part for one in encoded for part in (LENGTH.pack(len(one)), one)])
    if len(data) > limits.MAX_MESSAGE_BYTES:
        raise LimitExceeded(
            f"frame: expected at most {limits.MAX_MESSAGE_BYTES} bytes, got {len(data)}"
        )
    return data


def decode_frame(data: bytes) -> Iterator[Message | ProtocolError]:
    """The messages of a frame, each decoded as it is asked for; an error in place of a bad one.

    `data` may be anything at all.

    Raises:
        ProtocolError: it is no frame of this version; nothing else is raised, whatever the bytes.
    """
    if len(data) > limits.MAX_MESSAGE_BYTES:
        raise LimitExceeded(
            f"frame: expected at most {limits.MAX_MESSAGE_BYTES} bytes, got {len(data)}"
        )
    fields = unpack_map("frame", data, "v")
    version = fields.pop("v")
    if type(version) is not int:
        raise MalformedMessage(f"v: expected a version, got {shown(version)}")
    if version != limits.VERSION:
        raise UnsupportedVersion(f"v: expected {limits.VERSION}, got {version}")
    body = fields.pop("m", None)
    if type(body) is not bytes:
        raise MalformedMessage(f"m: expected the messages' bytes, got {shown(body)}")
    if fields:
        raise MalformedMessage(f"frame: expected no key {shown(next(iter(fields)))}")
    return _each(body, _spans(body))


def _each(body: bytes, spans: list[tuple[int, int]]) -> Iterator[Message | ProtocolError]:
    for begin, end in spans:
        try:
            message = decode(body[begin:end])
        except ProtocolError as error:
            yield error
        else:
            yield message


def _spans(body: bytes) -> list[tuple[int, int]]:
    """Where each message begins and ends."""
    spans: list[tuple[int, int]] = []
    at = 0
    while at < len(body):
        if len(spans) == limits.MAX_FRAME_MESSAGES:
            raise LimitExceeded(
                f"frame: expected at most {limits.MAX_FRAME_MESSAGES} messages, got more"
            )
        if len(body) - at < LENGTH.size:
            left = len(body) - at
            raise MalformedMessage(f"frame: expected a length of 4 bytes, got {left}")
        (length,) = LENGTH.unpack_from(body, at)
        at += LENGTH.size
        if length > len(body) - at:
            left = len(body) - at
            raise MalformedMessage(f"frame: expected a message of {length} bytes, got {left}")
        spans.append((at, at + length))
        at += length
    if not spans:
        raise MalformedMessage("frame: expected a message, got none")
    return spans


def _join(parts: list[bytes]) -> bytes:
    data: bytes = msgpack.packb({"v": limits.VERSION, "m": b"".join(parts)})
    return data
