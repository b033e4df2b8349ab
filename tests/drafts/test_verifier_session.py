import pytest

from tests.serving.fake_models import VOCAB_SIZE
from wanspec_kernels.drafts.session import Session, SessionConfig, State
from wanspec_kernels.engine.generation import Generation
from wanspec_kernels.engine.request import Request
from wanspec_kernels.wire import (
    Close,
    Commit,
    Draft,
    Error,
    ErrorCode,
    Hello,
    Open,
    Ping,
    Pong,
    Welcome,
    check_of,
)

OURS, THEIRS = bytes(range(32)), bytes(range(1, 33))
PROMPT = (1, 2, 3)
CONFIG = SessionConfig(heartbeat_ms=1000)


def hello(vocabulary=OURS, max_requests=4):
    return Hello(vocabulary, "bundled:draft", max_requests, 64, 5)


def greeted(now=0.0, **options):
    session = Session(1, "key", vocabulary=OURS, now=now, config=CONFIG, **options)
    (welcome,) = session.on_message(hello(), now).send
    assert isinstance(welcome, Welcome)
    return session


def running(prompt=PROMPT):
    generation = Generation(Request(prompt, 50), number=9, vocab_size=VOCAB_SIZE)
    generation.start(0.0)
    return generation


def commit(generation, tokens):
    for token in tokens:
        generation.pass_finished([token], [], 0.0)


def deliver(session, generation, now=0.0):
    """Send what is due; what was sent."""
    messages = session.update(generation, now)
    for message in messages:
        session.sent(message, now)
    return messages


def test_welcome_echoes_the_clock_and_says_the_limits():
    session = Session(1, "key", vocabulary=OURS, now=2.0, config=CONFIG)
    assert session.on_message(hello(), 2.0).send == [Welcome(5, 2000, 1000, 256 * 1024)]
    assert session.ready


def test_another_vocabulary_is_refused_naming_both():
    session = Session(1, "key", vocabulary=OURS, now=0.0)
    (error,) = session.on_message(hello(THEIRS), 0.0).send
    assert error.code == ErrorCode.VOCABULARY
    assert "0001020304050607" in error.message
    assert "0102030405060708" in error.message
    assert "bundled:draft" in error.message
    assert session.state is State.ENDED
    assert session.on_message(hello(), 0.0).send == []


def test_hello_comes_first():
    session = Session(1, "key", vocabulary=OURS, now=0.0)
    reaction = session.on_message(Ping(1, 0), 0.0)
    assert [m.code for m in reaction.send] == [ErrorCode.UNEXPECTED]
    assert session.update(running(), 0.0) == []


def test_open_once_then_commits_that_follow_each_other():
    session, generation = greeted(), running()
    (opened,) = deliver(session, generation)
    assert isinstance(opened, Open)
    assert (opened.request, opened.token_ids, opened.max_nodes) == (9, PROMPT, 64)
    assert deliver(session, generation) == []
    commit(generation, [4])
    assert deliver(session, generation) == [Commit(9, 4, (4,), check_of((*PROMPT, 4)))]
    commit(generation, [5, 6])
    assert deliver(session, generation) == [Commit(9, 6, (5, 6), generation.check)]


def test_a_late_joiner_gets_the_whole_text():
    generation = running()
    commit(generation, [4, 5])
    (opened,) = deliver(greeted(), generation)
    assert opened.token_ids == (*PROMPT, 4, 5)


def test_a_commit_that_could_not_be_sent_leads_to_a_new_open():
    session, generation = greeted(), running()
    deliver(session, generation, 0.0)
    commit(generation, [4])
    (lost,) = session.update(generation, 10.0)
    session.failed(lost, 10.0)
    assert not session.knows(9)
    commit(generation, [5])
    assert session.update(generation, 20.0) == []  # not at once: the text is long
    (opened,) = deliver(session, generation, 300.0)
    assert opened.token_ids == (*PROMPT, 4, 5)
    assert session.counters["send_failed"] == 1


@pytest.mark.parametrize("code", [ErrorCode.RESYNC, ErrorCode.UNKNOWN_REQUEST])
def test_resync_leads_to_a_new_open(code):
    session, generation = greeted(), running()
    deliver(session, generation)
    session.on_message(Error(code, "lost", 9), 50.0)
    assert session.update(generation, 100.0) == []
    assert isinstance(session.update(generation, 200.0)[0], Open)
    # Asking again and again does not get the text each time.
    opens = 0
    for step in range(100):
        now = 200.0 + 10 * step
        opens += len(deliver(session, generation, now))
        session.on_message(Error(code, "lost", 9), now)
    assert opens == 5


@pytest.mark.parametrize("code", [ErrorCode.CAPACITY, "from the future"])
def test_a_drafter_without_room_is_not_asked_for_a_while(code):
    session, generation = greeted(), running()
    deliver(session, generation)
    session.on_message(Error(code, "full", 9), 10.0)
    assert session.update(generation, 4000.0) == []
    assert isinstance(session.update(generation, 5011.0)[0], Open)


def test_a_drafter_that_closed_a_request_is_not_asked_for_it_again():
    session, generation = greeted(), running()
    deliver(session, generation)
    session.on_message(Close(9, "yielding"), 10.0)
    assert session.update(generation, 1e9) == []


def test_no_more_requests_than_it_serves():
    session = Session(1, "key", vocabulary=OURS, now=0.0)
    session.on_message(hello(max_requests=1), 0.0)
    deliver(session, running())
    other = Generation(Request(PROMPT, 5), number=10, vocab_size=VOCAB_SIZE)
    assert session.update(other, 0.0) == []
    assert session.close_request(9, "length") == [Close(9, "length")]
    assert isinstance(session.update(other, 0.0)[0], Open)
    assert session.close_request(10, "length") == []  # never sent


def test_a_text_too_long_for_open_is_not_sent():
    assert greeted().update(running((1,) * 32769), 0.0) == []


def test_heartbeat_round_trip_and_death():
    session = greeted()
    (ping,) = session.tick(0.0)
    assert session.tick(499.0) == []
    session.on_message(Pong(ping.clock_us, 0), 20.0)
    assert session.round_trip_ms == 20.0
    (ping,) = session.tick(600.0)
    assert ping.round_trip_us == 20_000
    session.on_message(Pong(ping.clock_us, 0), 640.0)
    assert session.round_trip_ms == pytest.approx(22.5)
    assert session.min_round_trip_ms == 20.0
    session.on_message(Pong(ping.clock_us, 0), 650.0)  # twice
    session.on_message(Pong(12345, 0), 650.0)  # never sent
    assert session.counters["bad_pongs"] == 2
    assert session.tick(3650.0)
    assert session.tick(3651.0) == []
    assert session.state is State.ENDED
    assert "silent for 3001 ms" in session.end_reason


def test_ping_is_answered():
    assert greeted().on_message(Ping(77, 0), 3.0).send == [Pong(77, 3000)]


def test_quarantine_is_said_once_and_then_silence():
    session, generation = greeted(), running()
    (error,) = session.quarantine("expected tokens below 50, got 77")
    assert "below 50" in error.message
    draft = Draft(9, 3, check_of(PROMPT), (4,), (-1,))
    reaction = session.on_message(draft, 1.0)
    assert (reaction.send, reaction.draft) == ([], None)
    assert session.quarantine("again") == []
    assert session.update(generation, 1.0) == []
    assert session.counters["ignored"] == 1


def test_what_a_drafter_does_not_send_is_malformed():
    reaction = greeted().on_message(Welcome(1, 1, 1, 1024), 0.0)
    assert (reaction.send, reaction.malformed) == ([], "expected a DRAFT, got Welcome")


def test_opens_wait_after_a_quick_return():
    session, generation = greeted(opens_after=200.0), running()
    assert session.update(generation, 100.0) == []
    assert isinstance(session.update(generation, 200.0)[0], Open)
