"""The exchange with drafters that are lists of messages, in virtual time."""

from itertools import pairwise
from random import Random

import pytest

from tests.serving.fake_models import VOCAB_SIZE, continuation, guess
from wanspec_kernels import events
from wanspec_kernels.drafts.exchange import MOVES_MS, Exchange, ExchangeConfig
from wanspec_kernels.drafts.outcome import Kind
from wanspec_kernels.wire import (
    Close,
    Commit,
    Draft,
    Error,
    ErrorCode,
    Expansion,
    Hello,
    Open,
    Ping,
    Welcome,
    decode_frame,
    encode_frame,
)
from wanspec_kernels.wire.sampling import Sampling

VOCABULARY = bytes(range(32))
PROMPT = (1, 2, 3)


class Town:
    """An exchange, and what each peer was sent."""

    def __init__(self, **config):
        self.now = 0.0
        self.exchange = Exchange(
            vocabulary=VOCABULARY,
            vocab_size=VOCAB_SIZE,
            now=0.0,
            config=ExchangeConfig(**config),
        )
        self.seen = []
        self.exchange.events.subscribe(self.seen.append)

    def join(self, name, seats=4, vocabulary=VOCABULARY):
        peer = name.encode()
        self.say(name, Hello(vocabulary, "bundled:draft", seats, 64, 5))
        return peer, self.heard().get(peer, [])

    def say(self, name, message):
        return self.exchange.receive(name.encode(), name, [encode_frame([message])], self.now)

    def heard(self):
        """By peer, but for heartbeats."""
        found = {}
        for outgoing in self.exchange.to_send(self.now):
            messages = tuple(decode_frame(outgoing.frame.data))
            assert outgoing.frame.messages == messages
            heard = [message for message in messages if not isinstance(message, Ping)]
            if heard:
                found.setdefault(outgoing.peer, []).extend(heard)
        return found

    def open(self, number, sampling=None, **options):
        return self.exchange.open(number, PROMPT, sampling or Sampling(), self.now, **options)

    def commit(self, number, count=1):
        text = self.exchange.texts[number]
        more = continuation(text.token_ids, count)
        self.exchange.commit(number, more, [None] * (count - 1), self.now)
        return tuple(more)

    def draft(self, number, skill=1.0, base=None):
        text = self.exchange.texts[number].token_ids[:base]
        return guess(Random(1), text, skill, 6, request=number)


def requests_of(messages, kind):
    return {message.request for message in messages if isinstance(message, kind)}


def test_a_drafter_is_welcomed_and_asked_for_each_request():
    town = Town()
    town.open(1)
    town.open(2)
    _, (welcome, *opens) = town.join("near")
    assert isinstance(welcome, Welcome)
    assert requests_of(opens, Open) == {1, 2}
    more = town.commit(1, 3)
    (message,) = town.heard()[b"near"]
    assert isinstance(message, Commit)
    assert (message.request, message.token_ids) == (1, more)
    town.exchange.close(2, "length")
    assert town.heard() == {b"near": [Close(2, "length")]}


def test_who_waits_for_its_turn_takes_no_seat():
    town = Town()
    town.join("near")
    town.open(1, ask=False)
    assert town.heard() == {}
    town.exchange.ask(1)
    assert requests_of(town.heard()[b"near"], Open) == {1}


def test_drafts_go_to_the_request_that_they_name():
    town = Town()
    texts = [town.open(number) for number in (1, 2)]
    town.join("near")
    assert town.say("near", town.draft(2))
    assert [len(text.pool) > 0 for text in texts] == [False, True]
    assert texts[1].outcomes == {Kind.NEW: 1}
    assert texts[1].bytes_received > 0
    assert not town.say("near", town.draft(2))  # a duplicate brings nothing
    assert not town.say("near", guess(Random(1), PROMPT, 1.0, 6, request=77))
    assert town.exchange.counters["drafts_without_request"] == 1


def test_a_frame_brings_drafts_of_many_requests_and_takes_commits_of_many():
    town = Town()
    texts = [town.open(number) for number in range(1, 9)]
    town.join("near", seats=8)
    frame = encode_frame([town.draft(number) for number in range(1, 9)])
    assert town.exchange.receive(b"near", "near", [frame], town.now)
    assert all(len(text.pool) for text in texts)
    assert sum(text.bytes_received for text in texts) == pytest.approx(len(frame), abs=8)
    for number in range(1, 9):
        town.commit(number, 2)
    (outgoing,) = town.exchange.to_send(town.now)
    assert requests_of(outgoing.frame.messages, Commit) == set(range(1, 9))


def test_a_bad_message_costs_the_others_of_its_frame_nothing():
    town = Town()
    text = town.open(1)
    town.join("near")
    good = encode_frame([town.draft(1)])
    bad = encode_frame([Commit(1, 4, (5,), 0), town.draft(1)])
    assert town.exchange.receive(b"near", "near", [bad], town.now)
    assert len(text.pool)
    assert not town.exchange.receive(b"near", "near", [good, good], town.now)
    assert town.exchange.counters["malformed"] == 2


def test_no_seat_is_given_twice_and_a_free_one_is_given_on():
    town = Town()
    town.join("near", seats=1)
    town.open(1)
    town.open(2)
    assert requests_of(town.heard()[b"near"], Open) == {1}
    town.exchange.close(1, "length")
    messages = town.heard()[b"near"]
    assert requests_of(messages, Close) == {1}
    assert requests_of(messages, Open) == {2}


def test_when_a_drafter_leaves_another_takes_over_and_its_drafts_are_forgotten():
    town = Town()
    texts = {number: town.open(number) for number in (1, 2)}
    town.join("near", seats=1)
    town.join("far", seats=1)
    for name in ("near", "far"):
        town.say(name, town.draft(1))
        town.say(name, town.draft(2))
    (first,) = town.exchange.drafters_of(1)
    name = texts[1].source_names[first]
    town.now += MOVES_MS
    town.exchange.disconnected(name.encode())
    town.heard()
    assert not texts[1].pool.enrolled & {first}
    assert town.exchange.drafters_of(1) | town.exchange.drafters_of(2)
    left = [event for event in town.seen if isinstance(event, events.Left)]
    assert [(event.source, event.reason) for event in left] == [(first, "disconnected")]


def test_a_request_moves_to_a_nearer_drafter_at_most_once_a_second():
    town = Town()
    text = town.open(1)
    town.open(2)
    town.join("far", seats=1)
    town.join("near", seats=1)  # nobody has a seat for a race
    near, far = (
        next(s.source for s in town.exchange.sessions if s.key == k) for k in ("near", "far")
    )
    town.exchange.sources.pace(far).reply_ms = 90.0
    moves = []
    town.exchange.events.subscribe(
        lambda e: isinstance(e, events.Released) and e.request == 1 and moves.append(town.now)
    )
    for step in range(40):
        town.now += 100.0
        # Every 300 ms the other is nearer.
        town.exchange.sources.pace(near).reply_ms = 5.0 if step // 3 % 2 else 400.0
        for name in ("far", "near"):
            town.say(name, Ping(int(town.now), 0))
        town.heard()
    assert len(moves) >= 2
    assert all(b - a >= MOVES_MS for a, b in pairwise(moves))
    assert text.pool.enrolled <= town.exchange.drafters_of(1)


def test_who_declines_a_request_is_not_asked_and_another_is():
    town = Town()
    town.open(1)
    town.join("near", seats=1)
    town.say("near", Error.of(ErrorCode.CAPACITY, "text: expected at most 2 tokens, got 3", 1))
    town.join("far", seats=1)
    assert town.exchange.drafters_of(1) == {
        s.source for s in town.exchange.sessions if s.key == "far"
    }


def test_who_is_late_with_replies_is_asked_for_half_as_many_and_then_for_more():
    town = Town()
    for number in range(1, 9):
        town.open(number)
    town.join("slow", seats=8)
    (session,) = town.exchange.sessions
    session.round_trip_ms, town.exchange.sources.round_ms = 20.0, 30.0

    def served_after(reply_ms, ms):
        town.exchange.sources.pace(session.source).reply_ms = reply_ms
        for _ in range(int(ms / 250)):
            town.now += 250.0
            town.say("slow", Ping(int(town.now), 0))
            town.heard()
        return sum(bool(town.exchange.drafters_of(number)) for number in range(1, 9))

    assert served_after(20.0 + 80.0, 3000.0) == 8
    assert served_after(20.0 + 200.0, 1000.0) == 4
    assert served_after(20.0 + 30.0, 3000.0) == 7


def test_a_frame_that_was_not_sent_is_made_good():
    town = Town()
    town.open(1)
    town.join("near")
    town.commit(1, 2)
    (outgoing,) = town.exchange.to_send(town.now)
    town.exchange.undelivered(outgoing, town.now)
    town.now += 1000.0
    (message,) = town.heard()[b"near"]
    assert isinstance(message, Open)
    assert len(message.token_ids) == 5


def test_an_invalid_draft_costs_its_sender_the_session_and_nobody_else_anything():
    town = Town()
    text = town.open(1, Sampling(temperature=1.0, rule="rejection"))
    town.join("liar")
    town.join("near")
    liar = next(s.source for s in town.exchange.sessions if s.key == "liar")
    twice = Expansion(-1, (0, 0, 1, 1), (5, 6), (1, 1))  # drawn without putting a token back
    draft = Draft(1, 3, text.check, (5, 6), (-1, -1), (twice,))
    assert not town.say("liar", draft)
    assert any(isinstance(m, Error) for m in town.heard()[b"liar"])
    assert [s.key for s in town.exchange.sessions] == ["near"]
    assert liar not in text.pool.enrolled
    assert any(isinstance(event, events.Quarantined) for event in town.seen)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_left_of_requests_and_drafters_that_have_gone(seed):
    rng, town, numbers = Random(seed), Town(), iter(range(1, 10_000))
    names = ["a", "b", "c"]
    for _ in range(300):
        kind = rng.random()
        if kind < 0.2:
            town.open(next(numbers), ask=rng.random() < 0.8)
        elif kind < 0.35 and town.exchange.texts:
            town.exchange.close(rng.choice(list(town.exchange.texts)), "length")
        elif kind < 0.5:
            town.join(rng.choice(names), seats=rng.randrange(1, 6))
        elif kind < 0.6:
            town.exchange.disconnected(rng.choice(names).encode())
        elif kind < 0.8 and town.exchange.texts:
            number = rng.choice(list(town.exchange.texts))
            town.say(rng.choice(names), town.draft(number))
        elif town.exchange.texts:
            town.commit(rng.choice(list(town.exchange.texts)), rng.randrange(1, 4))
        town.now += rng.random() * 100
        town.heard()
        for number, text in town.exchange.texts.items():
            assert text.pool.enrolled <= town.exchange.drafters_of(number)
        for session in town.exchange.sessions:
            assert sum(session.knows(n) for n in range(1, 400)) <= session.hello.max_requests
    for number in list(town.exchange.texts):
        town.exchange.close(number, "length")
    for name in names:
        town.exchange.disconnected(name.encode())
    town.heard()
    sizes = {k: len(v) for k, v in vars(town.exchange).items() if isinstance(v, dict | set)}
    counters = sizes.pop("counters")
    assert counters
    assert not any(sizes.values()), sizes
    assert not town.exchange.sources.paces
