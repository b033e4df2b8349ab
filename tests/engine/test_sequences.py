"""One request through a scheduler: where its text ends, who drafted it, what verdicts may be."""

from dataclasses import replace
from random import Random

import pytest

from tests.serving.dialler import FlatTimes
from tests.serving.fake_models import VOCAB_SIZE, continuation, guess, walk
from wanspec_kernels.control.home import DraftAtHome
from wanspec_kernels.drafts.outcome import Kind
from wanspec_kernels.engine.pages import PageBook
from wanspec_kernels.engine.plan import PassPlan, Verdict
from wanspec_kernels.engine.request import Limits, Request
from wanspec_kernels.engine.scheduler import Committed, Finished, Scheduler
from wanspec_kernels.wire import Expansion
from wanspec_kernels.wire.sampling import Sampling

PROMPT = (3, 1, 4, 1, 5)
TARGET_MS = 30.0


def scheduler_of(request, **options):
    scheduler = Scheduler(
        vocab_size=VOCAB_SIZE, pages=PageBook(100, 4), times=FlatTimes(), **options
    )
    return scheduler, scheduler.submit(request, 0.0)


def plan_of(scheduler, now):
    """The next pass, begun; whatever is waited for comes to nothing."""
    while not isinstance(action := scheduler.step(now), PassPlan):
        if isinstance(action, DraftAtHome):
            scheduler.drafted({job.request: [] for job in action.jobs}, now)
        else:
            now = scheduler.wake_at()
    scheduler.began(now)
    return action, now


def decode(scheduler, sequence, offers=lambda: None):
    """To the end; the texts, and the reason."""
    now, tokens, rows = 0.0, [], []
    while not sequence.done:
        offers()
        plan, now = plan_of(scheduler, now)
        (part,) = plan.parts
        rows.append((sequence.pool.length, part.num_logits))
        verdict = Verdict(part.request, *map(tuple, walk(list(sequence.token_ids), part.tree)))
        now += TARGET_MS
        for event in scheduler.verdict([verdict], now):
            if isinstance(event, Committed):
                tokens += event.token_ids
            else:
                assert isinstance(event, Finished)
    return tokens, sequence.finish_reason, rows


def test_a_stop_token_ends_the_text_with_it():
    expected = continuation(PROMPT, 30)
    stop = expected[9]
    tokens, reason, _ = decode(*scheduler_of(Request(PROMPT, 30, stop_token_ids={stop})))
    assert reason == "stop"
    assert tokens == expected[: expected.index(stop) + 1]


def test_the_targets_positions_bound_trees_and_text():
    limits = Limits(max_length=len(PROMPT) + 4)
    scheduler, sequence = scheduler_of(Request(PROMPT, 20), limits=limits)
    sequence.text.enrol(1, str(1), 10.0)

    def offers():
        wide = guess(Random(0), sequence.token_ids, 1, 9, request=sequence.number, branches=3)
        sequence.offer(1, wide, 0.0)

    tokens, reason, rows = decode(scheduler, sequence, offers)
    assert reason == "length"
    assert tokens == continuation(PROMPT, 5)
    assert all(length - 1 + count <= limits.max_length for length, count in rows)
    assert max(count for _, count in rows) > 1


def test_tokens_past_max_tokens_are_not_committed():
    scheduler, sequence = scheduler_of(Request(PROMPT, 2))
    sequence.text.enrol(1, str(1), 10.0)
    plan, now = plan_of(scheduler, 0.0)
    scheduler.verdict([Verdict(sequence.number, (9,), ())], now + TARGET_MS)
    draft = guess(Random(0), (*PROMPT, 9), 1, 5, request=sequence.number)
    sequence.offer(1, draft, now + TARGET_MS)
    # One token is left to say, so no draft can be of use.
    plan, now = plan_of(scheduler, now + TARGET_MS)
    assert plan.parts[0].num_logits == 1
    committed, finished = scheduler.verdict([Verdict(sequence.number, (8,), ())], now + TARGET_MS)
    assert (committed.token_ids, committed.sources) == ((8,), (None,))
    assert finished.reason == "length"
    assert sequence.output_ids == [9, 8]


def test_a_draft_in_mid_pass_counts_and_its_tokens_name_who_drafted():
    scheduler, sequence = scheduler_of(Request(PROMPT, 20))
    for source in (1, 2):
        sequence.text.enrol(source, str(source), 10.0)
    _, now = plan_of(scheduler, 0.0)
    text = continuation(PROMPT, 5)
    sequence.offer(2, guess(Random(0), PROMPT, 1, 5, request=1, branches=0), 1.0)
    (committed,) = scheduler.verdict([Verdict(1, (text[0],), ())], now + TARGET_MS)
    assert committed.sources == (None,)
    plan, now = plan_of(scheduler, now + TARGET_MS)
    assert plan.parts[0].tree.token_ids == tuple(text)
    verdict = Verdict(1, (text[1], text[2], 0), (1, 2))
    (committed,) = scheduler.verdict([verdict], now + TARGET_MS)
    assert committed.sources == (2, 2, None)


@pytest.mark.parametrize(
    ("tokens", "nodes"),
    [((4,), (1,)), ((4, 5), ()), ((9, 5), (1,)), ((4, 5), (0,)), ((4, 5), (7,))],
)
def test_a_verdict_that_is_no_path_is_refused(tokens, nodes):
    scheduler, sequence = scheduler_of(Request(PROMPT, 20))
    sequence.text.enrol(1, str(1), 10.0)
    sequence.offer(1, guess(Random(0), PROMPT, 1, 5, request=1, branches=0), 0.0)
    _, now = plan_of(scheduler, 0.0)
    with pytest.raises(ValueError, match="verdict: expected"):
        scheduler.verdict([Verdict(1, tokens, nodes)], now)


def test_events_out_of_phase_are_refused():
    scheduler, _ = scheduler_of(Request(PROMPT, 20))
    with pytest.raises(RuntimeError, match="expected a pass that has begun"):
        scheduler.verdict([Verdict(1, (1,), ())], 0.0)


@pytest.mark.parametrize(
    ("fields", "seed", "at_home"),
    [
        ({}, 77, 77),
        ({"share_seed": False}, None, 77),
        ({"rule": "rejection"}, None, None),
    ],
)
def test_open_shares_the_seed_only_where_it_may(fields, seed, at_home):
    _, sequence = scheduler_of(Request(PROMPT, 5, Sampling(seed=77, **fields)))
    assert sequence.open_message(64).seed == seed
    assert sequence.open_message(64, home=True).seed == at_home


def test_an_early_draft_that_proves_invalid_names_its_source():
    request = Request(PROMPT, 20, Sampling(rule="rejection", num_draws=1))
    _, sequence = scheduler_of(request)
    sequence.text.enrol(1, str(1), 10.0)
    first = guess(Random(1), (*PROMPT, 9), 1, 1, request=1, branches=0)
    for token in (1, 2):
        draws = Expansion(-1, (0,), (1, 2), (1, 1))
        draft = replace(first, token_ids=(token,), parents=(-1,), expansions=(draws,))
        assert sequence.offer(1, draft, 0.0).kind is Kind.EARLY
    assert sequence.text.commit([9], [None], 1.0).keys() == {1}
