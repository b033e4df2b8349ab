"""Texts exact, nothing waits past its bound, no page leaks, whatever happens in whatever order."""

from collections import Counter

import pytest

from tests.engine.schedules import PAGE_SIZE, play
from tests.serving.fake_models import VOCAB_SIZE
from wanspec_kernels.engine.pages import PageBook
from wanspec_kernels.engine.plan import PassPlan, Verdict
from wanspec_kernels.engine.request import Request
from wanspec_kernels.engine.scheduler import RefusedError, Scheduler, SchedulerLimits
from wanspec_kernels.wire.sampling import Sampling


@pytest.mark.parametrize("home", [False, True], ids=["remotes", "home"])
@pytest.mark.parametrize("first_seed", range(0, 400, 50))
def test_random_schedules(first_seed: int, home: bool) -> None:
    preempted = 0
    reasons: Counter[str] = Counter()
    for seed in range(first_seed, first_seed + 50):
        run = play(seed, home)
        preempted += run.scheduler.num_preempted
        reasons += run.reasons
    assert preempted > 0
    assert reasons.keys() >= {"length", "cancelled", "stop", "deadline"}


def test_a_prompt_that_can_never_fit_is_refused_with_the_numbers() -> None:
    scheduler = Scheduler(vocab_size=VOCAB_SIZE, pages=PageBook(3, PAGE_SIZE))
    with pytest.raises(RefusedError, match="at most 12 tokens, which 3 pages of 4 slots"):
        scheduler.submit(Request(tuple(range(13)), 1), 0.0)
    scheduler.submit(Request(tuple(range(12)), 1), 0.0)


def test_choices_for_one_prompt_read_it_once_and_share_its_pages() -> None:
    """Four at once: one reads, and then all hold the same pages but for the last one."""
    prompt = tuple(range(11))
    pages = PageBook(16, PAGE_SIZE)
    scheduler = Scheduler(vocab_size=VOCAB_SIZE, pages=pages)
    choices = [
        scheduler.submit(Request(prompt, 9, Sampling(0.8, seed=seed)), 0.0) for seed in range(4)
    ]
    now, rows, has_compared = 0.0, 0, False
    while scheduler.sequences:
        plan = scheduler.step(now)
        assert isinstance(plan, PassPlan)
        scheduler.began(now)
        rows += sum(len(part.prefix) for part in plan.parts)
        now += 10.0
        if all(0 < len(choice.output_ids) < 9 for choice in choices):
            has_compared = True
            held = [pages.pages_of(choice.number) for choice in choices]
            assert len({each[:2] for each in held}) == 1
            assert len({each[2] for each in held}) == 4
        scheduler.verdict(
            [
                Verdict(part.request, (part.request,), ())
                for part in plan.parts
                if part.tree is not None
            ],
            now,
        )
    # Two pages of the prompt once, and what is beyond them by each.
    assert rows == 2 * PAGE_SIZE + 4 * (len(prompt) - 1 - 2 * PAGE_SIZE)
    assert [len(choice.output_ids) for choice in choices] == [9] * 4
    assert has_compared


def test_a_full_queue_says_no() -> None:
    batch = SchedulerLimits(max_queue=2)
    scheduler = Scheduler(vocab_size=VOCAB_SIZE, pages=PageBook(3, PAGE_SIZE), batch=batch)
    for _ in range(2):
        scheduler.submit(Request((1,), 1), 0.0)
    with pytest.raises(RefusedError, match="2 wait"):
        scheduler.submit(Request((1,), 1), 0.0)
