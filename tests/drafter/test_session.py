"""Session with a fake model."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drafter.growth import GrowthShape
from drafter.home import HomeDrafter
from drafter.key_values import KeyValueStore
from drafter.session import Limits, Session
from tests.drafter.test_growth import open_request, paths_of
from wanspec_kernels.wire import (
    Close,
    Commit,
    Draft,
    Error,
    ErrorCode,
    check_of,
)

VOCAB = 50


class FakeModel:
    """The next token's logits depend on the token alone; `poison` fails any pass that it is in."""

    vocab_size = VOCAB
    max_positions = 100
    poison = VOCAB - 1

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.tokens: list[np.ndarray] = []

    def new_store(self) -> KeyValueStore:
        return KeyValueStore()

    def run(self, batch) -> torch.Tensor:
        self.batches.append(len(batch))
        self.tokens += [plan.token_ids for _, plan in batch]
        tokens = np.concatenate([plan.token_ids[plan.rows] for _, plan in batch])
        if any(self.poison in plan.token_ids for _, plan in batch):
            raise RuntimeError("out of memory")
        rng = torch.stack([torch.linspace(0, 4, VOCAB).roll(int(t)) for t in tokens])
        rng[:, self.poison] = -10.0
        return rng


@pytest.fixture
def model():
    return FakeModel()


@pytest.fixture
def session(model):
    return Session(model, limits=Limits(max_requests=2, max_nodes=64))


def commit(request, text, tokens) -> Commit:
    text = [*text, *tokens]
    return Commit(request, len(text), tuple(tokens), check_of(text))


def run_until_idle(session) -> list:
    out = []
    while session.busy:
        out += [*session.step(), *session.drafts()]
    return out


def codes(messages) -> list[tuple[str, int | None]]:
    return [(m.code, m.request) for m in messages if isinstance(m, Error)]


def test_drafts_all_requests_in_one_pass(session, model):
    session.on_message(open_request(request=1))
    session.on_message(open_request((4, 5), request=2))
    drafts = run_until_idle(session)
    assert {d.request for d in drafts} == {1, 2}
    assert model.batches[:2] == [2, 2]
    assert session.counters.num_passes == len(model.batches)
    assert not session.busy


def test_a_commit_goes_on_from_the_new_text(session):
    session.on_message(open_request(request=1))
    first = run_until_idle(session)[0]
    taken = first.token_ids[0]
    assert session.on_message(commit(1, (1, 2, 3), [taken])) == []
    drafts = run_until_idle(session)
    assert drafts
    assert {(d.base_length, d.base_check) for d in drafts} == {(4, check_of([1, 2, 3, taken]))}


def test_a_gap_asks_for_the_text_again_and_once(session):
    session.on_message(open_request(request=1))
    text = [1, 2, 3, 4]  # 4 never came
    assert codes(session.on_message(commit(1, text, [5]))) == [(ErrorCode.RESYNC, 1)]
    assert session.on_message(commit(1, [*text, 5], [6])) == []  # under way before the ERROR
    assert run_until_idle(session) == []
    session.on_message(open_request((*text, 5, 6), request=1))
    drafts = run_until_idle(session)
    assert {d.base_length for d in drafts} == {6}


def test_a_wrong_check_asks_for_the_text_again(session):
    session.on_message(open_request(request=1))
    wrong = Commit(1, 4, (5,), check_of([9, 9, 9, 5]))
    assert codes(session.on_message(wrong)) == [(ErrorCode.RESYNC, 1)]


def test_a_commit_may_come_twice(session):
    session.on_message(open_request(request=1))
    message = commit(1, (1, 2, 3), [5])
    assert session.on_message(message) == []
    assert session.on_message(message) == []
    assert session.counters.num_repeated_commits == 1
    assert session.counters.num_resyncs == 0


def test_an_unknown_request(session):
    assert codes(session.on_message(commit(9, (1,), [2]))) == [(ErrorCode.UNKNOWN_REQUEST, 9)]
    assert session.on_message(Close(9, "done")) == []
    assert session.counters.num_unknown == 2


def test_more_requests_than_agreed_are_refused(session):
    for request in (1, 2):
        assert session.on_message(open_request(request=request)) == []
    assert codes(session.on_message(open_request(request=3))) == [(ErrorCode.CAPACITY, 3)]
    session.on_message(Close(1, "done"))
    assert session.on_message(open_request(request=3)) == []
    assert session.requests == (2, 3)


def test_a_lost_request_makes_room(session):
    for request in (1, 2):
        session.on_message(open_request(request=request))
    session.on_message(commit(1, (7, 7, 7, 7, 7), [1]))
    assert session.on_message(open_request(request=3)) == []
    assert session.requests == (2, 3)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (open_request(range(40), request=1), None),
        (open_request([3] * 101, request=1), ErrorCode.CAPACITY),
        (open_request([VOCAB], request=1), ErrorCode.MALFORMED),
        (
            open_request(request=1, rule="rejection", num_draws=60, max_nodes=8),
            ErrorCode.CAPACITY,
        ),
    ],
)
def test_what_the_model_cannot_take_is_refused(session, message, code):
    assert codes(session.on_message(message)) == ([(code, 1)] if code else [])
    assert session.requests == (() if code else (1,))


@pytest.mark.parametrize(
    ("tokens", "code"), [([VOCAB], ErrorCode.MALFORMED), ([1] * 98, ErrorCode.CAPACITY)]
)
def test_commits_that_the_model_cannot_take_end_the_request(session, tokens, code):
    session.on_message(open_request(request=1))
    assert codes(session.on_message(commit(1, (1, 2, 3), tokens))) == [(code, 1)]
    assert session.requests == ()


def test_a_failing_pass_closes_its_request_only(session, model):
    session.on_message(open_request((1, 2, model.poison), request=1))
    session.on_message(open_request(request=2))
    out = run_until_idle(session)
    assert codes(out) == [(ErrorCode.INTERNAL, 1)]
    assert session.requests == (2,)
    assert any(isinstance(m, Draft) for m in out)


def test_a_dropped_draft_travels_with_the_next(session):
    session.on_message(open_request(request=1))
    drafts = run_until_idle(session)
    paths = {path for d in drafts for path in paths_of(d)}
    session.on_dropped(drafts[0])
    again = run_until_idle(session)
    assert {path for d in again for path in paths_of(d)} == paths
    assert session.counters.num_drafts_dropped == 1


def test_a_message_only_a_drafter_sends_is_answered(session):
    answer = session.on_message(Draft(1, 1, 0, (), ()))
    assert codes(answer) == [(ErrorCode.UNEXPECTED, None)]


requests = st.integers(0, 3)
tokens = st.lists(st.integers(0, VOCAB), min_size=1, max_size=6)
messages = st.one_of(
    st.builds(lambda r, t: open_request(t, request=r, max_nodes=8), requests, tokens),
    st.builds(
        lambda r, t: open_request(
            t, request=r, max_nodes=8, rule="rejection", num_draws=2, temperature=0.5
        ),
        requests,
        tokens,
    ),
    st.builds(
        lambda r, t, n, c: Commit(r, len(t) + n, tuple(t), c),
        requests,
        tokens,
        st.integers(1, 9),
        st.integers(0, 2**32 - 1),
    ),
    st.builds(lambda r, t, u: commit(r, t, u), requests, tokens, tokens),
    st.builds(lambda r: Close(r, ""), requests),
    st.builds(lambda r: Error("internal", "", r), requests),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(messages, st.none()), max_size=25))
def test_no_sequence_of_messages_does_harm(sequence):
    session = Session(FakeModel(), limits=Limits(max_requests=2, max_nodes=16))
    for message in sequence:
        if message is None:
            session.step()
            session.drafts(5)
        else:
            session.on_message(message)
        assert len(session.requests) <= 2


def test_home_drafts_on_call_and_catches_up(model):
    home = HomeDrafter(model, shape=GrowthShape())
    home.open(open_request((1, 2, 3), request=5, max_nodes=32))
    (draft,) = home.draft(5, [1, 2, 3], 1)
    assert (draft.base_length, max(map(len, paths_of(draft)))) == (3, 1)
    (deeper,) = home.draft(5, [1, 2, 3], 2)
    assert max(map(len, paths_of(deeper))) == 2  # the budget is spent
    path = max(paths_of(deeper), key=len)
    text = [1, 2, 3, *path[:1]]
    assert home.draft(5, text, 0) == []  # all of it was told
    # Tokens that some other drafter found, several passes' worth.
    text += [7, 8, 9]
    (draft,) = home.draft(5, text, 1)
    assert (draft.base_length, draft.base_check) == (len(text), check_of(text))
    home.close(5)
    with pytest.raises(KeyError):
        home.draft(5, text, 1)


def test_home_grows_on_what_others_drafted(model):
    home = HomeDrafter(model)
    home.open(open_request((1, 2, 3), request=5, max_nodes=64))
    chain = (20, 21, 22)
    known = Draft(5, 3, check_of((1, 2, 3)), chain, (-1, 0, 1), (), bytes([2, 2, 2]))
    model.tokens = []
    drafts = home.draft(5, [1, 2, 3], 1, known)
    assert [len(plan) for plan in model.tokens] == [6]  # text and all three nodes in one pass
    paths = {path for draft in drafts for path in paths_of(draft)}
    assert any(path[:3] == chain and len(path) == 4 for path in paths)
    assert any(path[:1] != chain[:1] for path in paths)
    stale = Draft(5, 2, check_of((1, 2)), (40,), (-1,), (), bytes([0]))
    assert not any((40,) in paths_of(d) for d in home.draft(5, [1, 2, 3], 1, stale))


def test_home_takes_a_long_text_in_without_counting(model):
    home = HomeDrafter(model)
    home.open(open_request([1], request=5))
    assert home.draft(5, [1] * 90, 1)[0].token_ids
    assert home.draft(5, [1] * 101, 1) == []


def test_home_reports_a_failing_model(model):
    home = HomeDrafter(model)
    home.open(open_request([1, model.poison], request=5))
    with pytest.raises(RuntimeError, match="out of memory"):
        home.draft(5, [1, model.poison], 1)


def test_drafts_are_shared_among_requests_and_the_rest_waits(session):
    session.on_message(open_request(request=1))
    session.on_message(open_request((4, 5), request=2))
    for _ in range(3):
        session.step()
    waiting = session.num_unsent
    drafts = session.drafts(6)
    assert [d.request for d in drafts] == [1, 2]
    assert all(len(d.token_ids) == 3 for d in drafts)
    assert session.num_unsent == waiting - 6
    # Less than one for each: they take turns.
    turns = [session.drafts(1) for _ in range(4)]
    assert [draft.request for drafts in turns for draft in drafts] == [1, 2, 1, 2]
    assert session.drafts(0) == []
    session.drafts()
    assert (session.num_unsent, session.drafts()) == (0, [])
