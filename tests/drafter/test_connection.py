"""Connection and Backoff, by a clock of the test's own."""

from random import Random

import msgpack
import pytest

from drafter.backoff import Backoff
from drafter.connection import Connection
from drafter.growth import GrowthShape
from drafter.session import Limits, Session
from tests.drafter.test_growth import open_request, paths_of
from tests.drafter.test_session import FakeModel
from wanspec_kernels.wire import (
    MAX_PLAIN_BYTES,
    Close,
    Commit,
    Draft,
    Error,
    ErrorCode,
    Hello,
    Ping,
    Pong,
    Welcome,
    check_of,
    decode_frame,
    encode,
    encode_frame,
)

HELLO = Hello(bytes(32), "fake", 2, 64, 0)


@pytest.fixture
def session():
    return Session(FakeModel(), limits=Limits(max_requests=64, max_nodes=64))


def tell(connection, now_us, *messages):
    connection.receive(encode_frame(messages), now_us)


def told(connection, now_us):
    """All that is sent now."""
    frames = connection.frames_to_send(now_us)
    for frame in frames:
        assert tuple(decode_frame(frame.data)) == frame.messages
    return [message for frame in frames for message in frame.messages]


def greeted(session, now_us=0, *, heartbeat_ms=1000, round_trip_us=2000, max_bytes=65536):
    connection = Connection(session, Hello(bytes(32), "fake", 2, 64, now_us))
    assert isinstance(told(connection, now_us)[0], Hello)
    tell(connection, now_us + round_trip_us, Welcome(now_us, 5, heartbeat_ms, max_bytes))
    return connection


def drain(connection, now_us, until_us):
    """As a driver whose model takes no time: what is sent, and how often it wakes."""
    sent, wakes = [], []
    while now_us <= until_us:
        wakes.append(now_us)
        sent += [(now_us, message) for message in told(connection, now_us)]
        if connection.lost:
            break
        if connection.wants_step:
            connection.step()
        now_us = max(now_us, connection.wake_at_us(now_us))
        if not connection.wants_step and now_us == wakes[-1]:
            now_us += 1
    return sent, wakes


def test_heartbeats_and_silence(session):
    connection = greeted(session)
    assert connection.round_trip_us == 2000
    assert connection.wake_at_us(2000) == 502_000
    assert told(connection, 501_999) == []
    assert told(connection, 502_000) == [Ping(502_000, 2000)]
    tell(connection, 512_000, Pong(502_000, 9))
    assert connection.round_trip_us == 3000
    assert told(connection, 3_511_999) == [Ping(3_511_999, 3000)]
    assert connection.lost is None
    assert connection.wake_at_us(3_511_999) == 3_512_000
    assert told(connection, 3_512_000) == []
    assert connection.lost == "heard nothing for 3.0 s"


def test_a_ping_is_answered_even_before_the_welcome(session):
    connection = Connection(session, HELLO)
    assert told(connection, 0) == [HELLO]
    tell(connection, 40, Ping(17, 0))
    assert connection.wake_at_us(40) == 40
    assert told(connection, 41) == [Pong(17, 40)]
    tell(connection, 50, open_request())
    (error,) = told(connection, 50)
    assert (error.code, error.request) == (ErrorCode.UNEXPECTED, None)
    assert connection.wake_at_us(50) == 10_000_000
    told(connection, 10_000_000)
    assert connection.lost == "no WELCOME for 10.0 s"


@pytest.mark.parametrize(
    ("code", "refused", "lost"),
    [
        (ErrorCode.VOCABULARY, True, False),
        (ErrorCode.VERSION, True, False),
        (ErrorCode.SUPERSEDED, True, False),
        (ErrorCode.CAPACITY, False, True),
        ("a code of a later version", False, True),
    ],
)
def test_refusals(session, code, refused, lost):
    connection = Connection(session, HELLO)
    tell(connection, 1, Error(code, "why"))
    assert (connection.refused is not None, connection.lost is not None) == (refused, lost)
    assert "why" in (connection.refused or connection.lost)


def test_a_verifier_of_another_version_is_no_verifier(session):
    of_version_2 = msgpack.packb({"v": 2, "t": "error", "e": "version", "m": "expected 2, got 3"})
    connection = Connection(session, HELLO)
    connection.receive(of_version_2, 1)
    assert connection.refused == "version: v: expected 3, got 2"
    connection = greeted(session)
    connection.receive(of_version_2, 3000)
    assert (connection.refused, connection.counters.num_malformed) == (None, 1)


def test_a_restarted_verifier_is_greeted_again(session):
    connection = greeted(session)
    tell(connection, 3000, open_request(request=1))
    tell(connection, 4000, Error(ErrorCode.UNEXPECTED, "expected HELLO first"))
    assert connection.lost is not None
    greeted(session)
    assert session.requests == ()


def test_bad_messages_are_answered_and_the_others_of_their_frame_read(session):
    connection = greeted(session)
    good = encode(open_request(request=1))
    body = b"".join(len(part).to_bytes(4, "little") + part for part in (b"\xc1", good))
    for data in (b"", msgpack.packb({"v": 3, "m": body})):
        connection.receive(data, 3000)
    assert [m.code for m in told(connection, 3000)] == [ErrorCode.MALFORMED] * 2
    assert connection.counters.num_malformed == 2
    assert session.requests == (1,)


def test_what_a_pass_brings_for_many_requests_travels_in_few_frames(session):
    connection = greeted(session)
    opens = [open_request((1 + r % 40,), request=r) for r in range(40)]
    connection.receive(encode_frame(opens), 3000)
    connection.step()
    frames = connection.frames_to_send(10_000)
    drafts = [m for frame in frames for m in frame.messages if isinstance(m, Draft)]
    assert len({draft.request for draft in drafts}) == 40
    assert len(frames) <= 2
    assert all(len(frame.data) <= MAX_PLAIN_BYTES for frame in frames)
    # The marker is the last of all, so that its answer tells of all.
    assert isinstance(frames[-1].messages[-1], Ping)


def test_a_narrow_link_gets_short_frames(session):
    """Half the drafts of a long one would wait for the other half."""
    connection = greeted(session, round_trip_us=100_000)
    opens = [open_request((1 + r % 40,), request=r) for r in range(40)]
    connection.receive(encode_frame(opens), 100_000)
    connection.step()
    frames = connection.frames_to_send(200_000)
    assert len(frames) > 2
    assert max(len(frame.data) for frame in frames) <= connection.flow.frame_bytes + 100 < 1400


def test_drafts_and_the_model_wait_while_nothing_is_taken(session):
    connection = greeted(session)
    tell(connection, 3000, open_request(request=1), Ping(5, 0))
    connection.writable = False
    assert (connection.wants_step, connection.waits_to_write) == (False, True)
    assert told(connection, 4000) == [Pong(5, 3000)]
    assert connection.wake_at_us(4000) == 502_000
    connection.writable = True
    assert (connection.wants_step, connection.waits_to_write) == (True, False)
    connection.step()
    connection.writable = False
    assert told(connection, 5000) == []
    assert session.num_unsent > 0
    connection.writable = True
    assert isinstance(told(connection, 6000)[0], Draft)


def test_what_cannot_be_sent_is_dropped_and_counted_and_drafts_come_again(session):
    connection = greeted(session)
    tell(connection, 3000, open_request(request=1), Ping(5, 0))
    connection.step()
    (frame,) = connection.frames_to_send(10_000)
    pong, draft, marker = frame.messages
    connection.dropped(frame)
    assert session.counters.num_drafts_dropped == 1
    assert connection.counters.num_unsendable == 2
    again = [m for _, m in drain(connection, 20_000, 30_000)[0] if isinstance(m, Draft)]
    assert set(paths_of(draft)) <= {path for one in again for path in paths_of(one)}
    assert (type(pong), type(marker)) == (Pong, Ping)


def test_what_is_too_large_for_the_peer_is_left_out_and_counted(session):
    connection = greeted(session, max_bytes=1024)
    connection.close("x")
    tell(connection, 3000, open_request(request=1))
    connection.close("x" * 1020)
    assert told(connection, 4000) == []
    assert connection.counters.num_too_large == 1


def test_goodbye(session):
    connection = greeted(session)
    tell(connection, 3000, open_request(request=1))
    connection.close("the drafter stops")
    assert told(connection, 4000) == [Close(1, "the drafter stops")]


def wide_session(max_nodes):
    shape = GrowthShape(512, max_children=16, min_probability=0.0, min_path_probability=1e-9)
    return Session(FakeModel(), limits=Limits(2, max_nodes), shape=shape)


def test_an_idle_drafter_sends_its_tree_by_the_pace_alone():
    """Nothing is answered, so nothing but its clock can wake it; and it does not spin."""
    session = wide_session(1024)
    connection = greeted(session, round_trip_us=1_000_000, heartbeat_ms=60_000)
    tell(connection, 1_000_000, open_request(request=1, max_nodes=1024))
    while connection.wants_step:
        connection.step()
    sent, wakes = drain(connection, 1_000_000, 2_000_000)
    paths = {path for _, m in sent if isinstance(m, Draft) for path in paths_of(m)}
    assert len(paths) == 1024
    assert len(wakes) < 12
    assert session.num_unsent == 0


def test_a_driver_wakes_for_pings_alone_when_all_is_sent(session):
    connection = greeted(session)
    tell(connection, 3000, open_request(request=1))
    drain(connection, 3000, 300_000)
    commit = Commit(1, 4, (9,), check_of([1, 2, 3, 9]))
    tell(connection, 300_000, commit)
    sent, _ = drain(connection, 300_000, 500_000)
    assert any(isinstance(m, Draft) and m.base_length == 4 for _, m in sent)
    _, wakes = drain(connection, 501_000, 2_000_000)
    assert len(wakes) < 12


def test_backoff_is_bounded_and_jittered():
    backoff = Backoff(first_ms=100, most_ms=1000, random=Random(0))
    waits = [backoff.wait_ms() for _ in range(8)]
    for wait, most in zip(waits, [100, 200, 400, 800, 1000, 1000, 1000, 1000], strict=True):
        assert most / 2 <= wait <= most
    assert len(set(waits[4:])) > 1
    backoff.reset()
    assert backoff.wait_ms() <= 100
