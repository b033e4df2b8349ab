from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wire.message_strategies import messages
from wanspec_kernels.wire import (
    MAX_COMMIT_TOKENS,
    MAX_DEPTH,
    MAX_DRAFT_NODES,
    MAX_DRAWS,
    MAX_FRAME_MESSAGES,
    MAX_MESSAGE_BYTES,
    MAX_PLAIN_BYTES,
    MAX_PROMPT_TOKENS,
    MAX_SUPPORT,
    MAX_TEXT_BYTES,
    Commit,
    Draft,
    Error,
    ErrorCode,
    Expansion,
    Hello,
    LimitExceeded,
    Message,
    Open,
    Packer,
    Ping,
    ProtocolError,
    Welcome,
    check_of,
    decode,
    decode_frame,
    encode,
    encode_frame,
    frames_of,
)
from wanspec_kernels.wire.frames import HEAD_BYTES

BIGGEST_TOKEN = 2**31 - 1


@settings(max_examples=300, deadline=None)
@given(messages)
def test_every_message_comes_back_equal(message: Message) -> None:
    again = decode(encode(message))
    assert again == message
    assert type(again) is type(message)


def largest_draft() -> Draft:
    """Chains of MAX_DEPTH side by side, everything expanded that has a child."""
    parents = tuple(i - 1 if i % MAX_DEPTH else -1 for i in range(MAX_DRAFT_NODES))
    token_ids = tuple(BIGGEST_TOKEN - i for i in range(MAX_DRAFT_NODES))
    expansions = []
    for parent in sorted(set(parents)):
        child = parents.index(parent)
        support = (token_ids[child], *range(MAX_SUPPORT - 1))
        children = (child,) * MAX_DRAWS
        expansions.append(Expansion(parent, children, support, (65535,) * MAX_SUPPORT))
    return Draft(2**64 - 1, BIGGEST_TOKEN, 2**32 - 1, token_ids, parents, tuple(expansions))


@pytest.mark.parametrize(
    "message",
    [
        largest_draft(),
        Open(
            2**64 - 1, (BIGGEST_TOKEN,) * MAX_PROMPT_TOKENS, "match", 100.0, 2**31 - 1, 1.0, 1.0,
            -(2**63), 1024, MAX_DEPTH, 0, False,
        ),
        Commit(0, BIGGEST_TOKEN, (BIGGEST_TOKEN,) * MAX_COMMIT_TOKENS, 0),
        Error("x" * MAX_TEXT_BYTES, "é" * (MAX_TEXT_BYTES // 2)),
    ],
    ids=lambda message: type(message).__name__,
)  # fmt: skip
def test_the_largest_messages_fit(message: Message) -> None:
    data = encode_frame([message])
    assert len(data) <= MAX_MESSAGE_BYTES
    assert list(decode_frame(data)) == [message]
    most = HEAD_BYTES + 4 + len(encode(message))
    assert [frame.messages for frame in frames_of([message], most)] == [(message,)]
    with pytest.raises(LimitExceeded, match=f"at most {most - 1} bytes, got {most}"):
        frames_of([message], most - 1)


@pytest.mark.parametrize(
    "message",
    [
        replace(largest_draft(), expansions=(), confidences=bytes(MAX_DRAFT_NODES)),
        Hello(bytes(32), "x" * MAX_TEXT_BYTES, 4096, 4096, 2**63 - 1),
        Error("x" * MAX_TEXT_BYTES, "x" * MAX_TEXT_BYTES, 2**64 - 1),
    ],
    ids=lambda message: type(message).__name__,
)
def test_without_draws_no_message_of_a_drafter_is_large(message: Message) -> None:
    assert len(encode_frame([message])) <= MAX_PLAIN_BYTES


@settings(max_examples=100, deadline=None)
@given(st.lists(messages, max_size=20), st.integers(20, 2000))
def test_packed_messages_come_back_in_order(sent: list[Message], max_bytes: int) -> None:
    packer = Packer(max_bytes)
    fit = [message for message in sent if packer.add(message)]
    frames = packer.frames()
    assert all(len(frame.data) <= max_bytes for frame in frames)
    assert [message for frame in frames for message in decode_frame(frame.data)] == fit
    assert all(tuple(decode_frame(frame.data)) == frame.messages for frame in frames)
    assert all(HEAD_BYTES + 4 + len(encode(m)) > max_bytes for m in sent if m not in fit)
    # Greedy: the first message of a frame had no room in the one before.
    for before, after in pairwise(frames):
        assert HEAD_BYTES + sum(map(size_of, (*before.messages, after.messages[0]))) > max_bytes
    assert packer.frames() == []


def size_of(message: Message) -> int:
    return 4 + len(encode(message))


def test_a_frame_has_so_many_messages_at_most() -> None:
    pings = [Ping(1, 2)] * (MAX_FRAME_MESSAGES + 1)
    assert [len(frame.messages) for frame in frames_of(pings)] == [MAX_FRAME_MESSAGES, 1]
    assert len(list(decode_frame(encode_frame(pings[1:])))) == MAX_FRAME_MESSAGES
    for several in (pings, []):
        with pytest.raises(LimitExceeded, match=r"frame: expected 1\.\.256 messages"):
            encode_frame(several)


def test_a_large_message_travels_alone() -> None:
    large, small = largest_draft(), Ping(1, 2)
    frames = frames_of([small, small, large, small])
    assert [frame.messages for frame in frames] == [(small, small), (large,), (small,)]
    drafts = [replace(largest_draft(), expansions=(), request=r) for r in range(64)]
    frames = frames_of(drafts)
    assert max(len(frame.data) for frame in frames) <= MAX_PLAIN_BYTES
    assert len(frames) == -(-len(drafts) // ((MAX_PLAIN_BYTES - HEAD_BYTES) // size_of(drafts[0])))


def test_even_a_draft_with_every_node_expanded_would_fit() -> None:
    of_expansion = 6 + 2 * MAX_DRAWS + 6 * MAX_SUPPORT
    assert (MAX_DRAFT_NODES + 1) * of_expansion + MAX_DRAFT_NODES * 6 + 100 <= MAX_MESSAGE_BYTES


def test_check_is_incremental() -> None:
    text = list(range(0, 2**31, 2**24))
    for cut in (0, 1, 64, len(text)):
        assert check_of(text[cut:], check_of(text[:cut])) == check_of(text)
    assert check_of([]) == 0
    assert check_of([1, 2]) != check_of([2, 1])
    assert check_of([ord("1") | ord("2") << 8 | ord("3") << 16 | ord("4") << 24]) == 0x9BE3E0A3


def test_an_error_of_anything_can_be_sent() -> None:
    for text in ("\n" * 5000, "𝔘" * 5000, "\ud800", "", "a\x1b[31mb"):
        error = Error.of(ErrorCode.INTERNAL, ValueError(text), 3)
        assert decode(encode(error)) == error
    assert Error.of("malformed", "a\nb").message == "a?b"


GOOD_OPEN: dict[str, object] = {
    "request": 1, "token_ids": (1,), "rule": "rejection", "temperature": 1.0, "top_k": 0,
    "top_p": 1.0, "min_p": 0.0, "seed": None, "max_nodes": 8, "max_depth": 4, "num_draws": 2,
    "replacement": False,
}  # fmt: skip
GOOD_DRAFT: dict[str, object] = {
    "request": 1, "base_length": 5, "base_check": 0, "token_ids": (7, 8, 9), "parents": (-1, -1, 0),
    "expansions": (Expansion(-1, (0, 1), (7, 8, 9), (1, 2, 3)),),
}  # fmt: skip


def expansion(
    parent: object = -1,
    children: object = (0, 1),
    tokens: object = (7, 8),
    weights: object = (1, 2),
) -> tuple[Expansion, ...]:
    return (Expansion(parent, children, tokens, weights),)  # type: ignore[arg-type]


def chain(length: int) -> dict[str, object]:
    return {
        "token_ids": (0,) * length,
        "parents": tuple(range(-1, length - 1)),
        "expansions": (),
    }


def wide(length: int) -> dict[str, object]:
    return {"token_ids": tuple(range(length)), "parents": (-1,) * length, "expansions": ()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request": True}, "request: expected an integer, got True"),
        ({"request": -1}, "request: expected 0..18446744073709551615, got -1"),
        ({"request": 2**64}, "request"),
        ({"request": 1.0}, "request"),
        ({"token_ids": ()}, "token_ids: expected at least 1 entries, got 0"),
        ({"token_ids": [1]}, "token_ids: expected a tuple, got list"),
        ({"token_ids": (1, True)}, "token_ids: expected integers only"),
        ({"token_ids": (2**31,)}, "token_ids: expected entries in 0..2147483647, got 2147483648"),
        ({"token_ids": (-1,)}, "token_ids"),
        ({"token_ids": (1,) * (MAX_PROMPT_TOKENS + 1)}, "token_ids: expected at most 32768"),
        ({"rule": "other"}, "rule: expected match or rejection, got 'other'"),
        ({"rule": None}, "rule"),
        ({"temperature": float("nan")}, "temperature: expected a finite number, got nan"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 0.009}, "temperature: expected 0 or 0.01..100.0, got 0.009"),
        ({"temperature": 100.1}, "temperature"),
        ({"temperature": -0.5}, "temperature"),
        ({"temperature": False}, "temperature"),
        ({"top_k": 2**31}, "top_k"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, r"top_p: expected a number in \(0, 1\], got 0.0"),
        ({"top_p": 1.001}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"min_p": -0.001}, "min_p"),
        ({"min_p": 1.001}, "min_p"),
        ({"seed": 3}, "seed: expected none under rule rejection"),
        ({"rule": "match", "num_draws": 0, "seed": 2**63}, "seed"),
        ({"rule": "match"}, r"num_draws \(rule match\): expected 0..0, got 2"),
        ({"rule": "match", "num_draws": 0, "replacement": True}, "replacement"),
        ({"num_draws": 0}, "num_draws"),
        ({"num_draws": MAX_DRAWS + 1}, "num_draws"),
        ({"replacement": 0}, "replacement: expected true or false, got 0"),
        ({"max_nodes": 0}, "max_nodes"),
        ({"max_nodes": 4097}, "max_nodes"),
        ({"max_depth": 0}, "max_depth"),
        ({"max_depth": MAX_DEPTH + 1}, "max_depth"),
    ],
)
def test_open_is_checked_when_built(change: dict[str, object], message: str) -> None:
    Open(**GOOD_OPEN)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match=message):
        Open(**GOOD_OPEN | change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_length": 0}, "base_length"),
        ({"base_check": 2**32}, "base_check"),
        ({"parents": (-1, -1)}, "parents: expected 3 entries, got 2"),
        ({"parents": (0, -1, 0)}, r"parents\[0\]: expected -1..-1, got 0"),
        ({"parents": (-1, 2, 0)}, r"parents\[1\]: expected -1..0, got 2"),
        ({"parents": (-1, -2, 0)}, "parents"),
        ({"token_ids": (7, 7, 9)}, "siblings"),
        (chain(MAX_DEPTH + 1), "depth at most 64, got 65"),
        (wide(MAX_DRAFT_NODES + 1), "token_ids: expected at most 256 entries, got 257"),
        ({"expansions": [1]}, "expansions: expected a tuple"),
        ({"expansions": (1,)}, r"expansions\[0\]: expected an Expansion, got 1"),
        ({"expansions": expansion() * 2}, "a parent twice"),
        ({"expansions": expansion() * 5}, "expansions: expected at most 4 entries, got 5"),
        ({"expansions": expansion(parent=0)}, "expected children of node 0, got 0, a child of -1"),
        ({"expansions": expansion(parent=3)}, "parent"),
        ({"expansions": expansion(parent=None)}, "parent"),
        ({"expansions": expansion(children=())}, r"\[0\].children: expected at least 1 entries"),
        ({"expansions": expansion(children=(3,))}, "children"),
        ({"expansions": expansion(children=(-1,))}, "children"),
        ({"expansions": expansion(children=(2,))}, "expected children of node -1"),
        ({"expansions": expansion(children=(0,) * (MAX_DRAWS + 1))}, "at most 64 entries, got 65"),
        ({"expansions": expansion(children=None)}, "children: expected a tuple, got None"),
        ({"expansions": expansion(tokens=(7, 9))}, "got node 1 with token 8"),
        ({"expansions": expansion(tokens=(7, 8, 7), weights=(1, 1, 1))}, "no token twice"),
        ({"expansions": expansion(tokens=(7, 8, 2**31), weights=(1, 1, 1))}, "token_ids"),
        ({"expansions": expansion(tokens=(7, 8, [1]), weights=(1, 1, 1))}, "integers only"),
        ({"expansions": expansion(weights=(1,))}, "weights: expected 2, got 1"),
        ({"expansions": expansion(weights=(1, 0))}, "weights: expected entries in 1..65535, got 0"),
        ({"expansions": expansion(weights=(1, 65536))}, "weights"),
        ({"expansions": expansion(weights=(1, 1.0))}, "weights: expected integers only"),
        (
            {"expansions": expansion(tokens=tuple(range(65)), weights=(1,) * 65)},
            "at most 64 entries, got 65",
        ),
    ],
)
def test_draft_is_checked_when_built(change: dict[str, object], message: str) -> None:
    Draft(**GOOD_DRAFT)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match=message):
        Draft(**GOOD_DRAFT | change)  # type: ignore[arg-type]


def test_drafts_at_their_limits_are_good() -> None:
    for change in (chain(MAX_DEPTH), wide(MAX_DRAFT_NODES), chain(0)):
        draft = Draft(**GOOD_DRAFT | change)  # type: ignore[arg-type]
        assert decode(encode(draft)) == draft


def test_the_other_messages_are_checked_when_built() -> None:
    with pytest.raises(ProtocolError, match="vocabulary: expected 32 bytes, got 31"):
        Hello(b"x" * 31, "m", 1, 1, 0)
    with pytest.raises(ProtocolError, match="vocabulary: expected bytes, got 'x"):
        Hello("x" * 32, "m", 1, 1, 0)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="model: expected printable text"):
        Hello(b"x" * 32, "a\nb", 1, 1, 0)
    with pytest.raises(ProtocolError, match=r"max_requests: expected 1\.\.4096, got 4097"):
        Hello(b"x" * 32, "m", 4097, 1, 0)
    with pytest.raises(ProtocolError, match="heartbeat_ms"):
        Welcome(0, 0, 0, 4096)
    with pytest.raises(ProtocolError, match="max_message_bytes"):
        Welcome(0, 0, 1, MAX_MESSAGE_BYTES + 1)
    with pytest.raises(ProtocolError, match="length: expected more than the 3 committed, got 3"):
        Commit(0, 3, (1, 2, 3), 0)
    with pytest.raises(LimitExceeded, match="token_ids"):
        Commit(0, 9999, (1,) * (MAX_COMMIT_TOKENS + 1), 0)
    with pytest.raises(LimitExceeded, match="message: expected at most 1024 bytes, got 1026"):
        Error("internal", "é" * 513)
