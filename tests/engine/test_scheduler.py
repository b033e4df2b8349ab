"""Texts exact, nothing waits past its bound, no page leaks, whatever happens in whatever order."""

import pytest

from tests.engine.schedules import PAGE_SIZE, Run
from tests.serving.fake_models import VOCAB_SIZE
from wanspec_kernels.engine.pages import PageBook
from wanspec_kernels.engine.request import Request
from wanspec_kernels.engine.scheduler import RefusedError, Scheduler, SchedulerLimits


@pytest.mark.parametrize("home", [False, True], ids=["remotes", "home"])
@pytest.mark.parametrize("first_seed", range(0, 400, 50))
def test_random_schedules(first_seed: int, home: bool) -> None:
    preempted = 0
    for seed in range(first_seed, first_seed + 50):
        run = Run(seed, home)
        run.play()
        assert run.ended.keys() == run.requests.keys()
        for number, reason in run.ended.items():
            if reason == "length":
                assert len(run.texts[number]) == run.requests[number].max_tokens
            else:
                assert reason == "cancelled"
        assert run.pages.num_free == run.num_pages
        preempted += run.scheduler.num_preempted
    assert preempted > 0


def test_a_prompt_that_can_never_fit_is_refused_with_the_numbers() -> None:
    scheduler = Scheduler(vocab_size=VOCAB_SIZE, pages=PageBook(3, PAGE_SIZE))
    with pytest.raises(RefusedError, match="at most 12 tokens, which 3 pages of 4 slots"):
        scheduler.submit(Request(tuple(range(13)), 1), 0.0)
    scheduler.submit(Request(tuple(range(12)), 1), 0.0)


def test_a_full_queue_says_no() -> None:
    batch = SchedulerLimits(max_queue=2)
    scheduler = Scheduler(vocab_size=VOCAB_SIZE, pages=PageBook(3, PAGE_SIZE), batch=batch)
    for _ in range(2):
        scheduler.submit(Request((1,), 1), 0.0)
    with pytest.raises(RefusedError, match="2 wait"):
        scheduler.submit(Request((1,), 1), 0.0)
