"""Frames of a link probe: a header, then padding up to the size that is to be measured.

Not part of the wire between verifier and drafter, but as large as what travels there: a full DRAFT
up, a COMMIT down. A reply is never larger than the frame it answers.
"""

import os
import struct
from dataclasses import dataclass

from wanspec_kernels.wire import MAX_DRAFT_NODES, MAX_MESSAGE_BYTES, Draft, encode_frame
from wanspec_kernels.wire.limits import MAX_CLOCK_US

_HEADER = struct.Struct("<4sBxxxIQQ")  # magic, version, number, sent, received
_MAGIC = b"WSPB"
_VERSION = 1

REPLY_BYTES = 64  # a COMMIT of five tokens
MIN_BYTES = REPLY_BYTES
MAX_BYTES = MAX_MESSAGE_BYTES

_FULL = Draft(
    0,
    1000,
    0xFFFFFFFF,
    tuple(range(70_000, 70_000 + MAX_DRAFT_NODES)),
    tuple(range(-1, 31)) * (MAX_DRAFT_NODES // 32),
    confidences=bytes(MAX_DRAFT_NODES),
)


class FrameError(ValueError):
    """Bytes that are no frame of this version."""


@dataclass(frozen=True, slots=True)
class Frame:
    number: int
    sent_us: int  # the prober's clock
    received_us: int = 0  # the responder's; 0 in a request

    def encode(self, num_bytes: int) -> bytes:
        """Padded with bytes that no link compresses."""
        header = _HEADER.pack(_MAGIC, _VERSION, self.number, self.sent_us, self.received_us)
        return header + os.urandom(num_bytes - len(header))

    @classmethod
    def decode(cls, data: bytes) -> "Frame":
        if not MIN_BYTES <= len(data) <= MAX_BYTES:
            raise FrameError(f"expected {MIN_BYTES} to {MAX_BYTES} bytes, got {len(data)}")
        magic, version, number, sent_us, received_us = _HEADER.unpack_from(data)
        if (magic, version) != (_MAGIC, _VERSION):
            raise FrameError(f"expected a probe of version {_VERSION}")
        if max(sent_us, received_us) > MAX_CLOCK_US // 2:
            raise FrameError("expected clocks that can be subtracted")
        return cls(number, sent_us, received_us)


def draft_bytes() -> int:
    """Of a DRAFT of as many nodes as one holds: what most of a drafter's messages are."""
    return len(encode_frame([_FULL]))
