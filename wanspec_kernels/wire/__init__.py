"""The messages between verifier and drafter, and their limits. The authority is docs/protocol.md.

>>> [*decode_frame(encode_frame([Ping(clock_us=7, round_trip_us=0)]))]
[Ping(clock_us=7, round_trip_us=0)]
"""

from wanspec_kernels.tree import Expansion
from wanspec_kernels.wire.codec import decode, encode
from wanspec_kernels.wire.errors import (
    LimitExceeded,
    MalformedMessage,
    ProtocolError,
    UnsupportedVersion,
)
from wanspec_kernels.wire.frames import Frame, Packer, decode_frame, encode_frame, frames_of
from wanspec_kernels.wire.limits import (
    MAX_COMMIT_TOKENS,
    MAX_DEPTH,
    MAX_DRAFT_NODES,
    MAX_DRAWS,
    MAX_FRAME_MESSAGES,
    MAX_MESSAGE_BYTES,
    MAX_PLAIN_BYTES,
    MAX_PROMPT_TOKENS,
    MAX_REQUESTS,
    MAX_SUPPORT,
    MAX_TEXT_BYTES,
    MAX_TREE_NODES,
    VERSION,
)
from wanspec_kernels.wire.messages import (
    Close,
    Commit,
    Draft,
    Error,
    ErrorCode,
    Hello,
    Message,
    Open,
    Ping,
    Pong,
    Welcome,
    check_of,
)

__all__ = [
    "MAX_COMMIT_TOKENS",
    "MAX_DEPTH",
    "MAX_DRAFT_NODES",
    "MAX_DRAWS",
    "MAX_FRAME_MESSAGES",
    "MAX_MESSAGE_BYTES",
    "MAX_PLAIN_BYTES",
    "MAX_PROMPT_TOKENS",
    "MAX_REQUESTS",
    "MAX_SUPPORT",
    "MAX_TEXT_BYTES",
    "MAX_TREE_NODES",
    "VERSION",
    "Close",
    "Commit",
    "Draft",
    "Error",
    "ErrorCode",
    "Expansion",
    "Frame",
    "Hello",
    "LimitExceeded",
    "MalformedMessage",
    "Message",
    "Open",
    "Packer",
    "Ping",
    "Pong",
    "ProtocolError",
    "UnsupportedVersion",
    "Welcome",
    "check_of",
    "decode",
    "decode_frame",
    "encode",
    "encode_frame",
    "frames_of",
]
