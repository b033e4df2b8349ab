"""Events: whoever only listens knows what became of every request and pass."""

from collections import Counter

import pytest

from tests.engine.schedules import Run
from wanspec_kernels.engine.events import (
    Admitted,
    Committed,
    Finished,
    HomeBegan,
    HomeEnded,
    PassBegan,
    PassEnded,
    Preempted,
    Submitted,
    Waited,
)
from wanspec_kernels.events import Event


class Ledger:
    """An account of a run, from its events alone; it fails where one comes out of turn."""

    def __init__(self) -> None:
        self.waiting: set[int] = set()
        self.active: set[int] = set()
        self.texts: dict[int, list[int]] = {}
        self.reasons: Counter[str] = Counter()
        self.running: PassBegan | None = None
        self.drafting: HomeBegan | None = None
        self.counts: Counter[type[Event]] = Counter()
        self.parts = 0

    def __call__(self, event: Event) -> None:
        self.counts[type(event)] += 1
        match event:
            case Submitted(number):
                self.waiting.add(number)
                self.texts[number] = []
            case Admitted(number):
                self.waiting.remove(number)
                self.active.add(number)
            case Preempted(number):
                self.active.remove(number)
                self.waiting.add(number)
            case PassBegan():
                assert self.running is None
                assert self.active.issuperset(event.requests)
                self.running = event
                self.parts += len(event.requests)
            case PassEnded(requests, rows, ms, at_ms):
                assert self.running is not None
                assert (self.running.requests, self.running.rows) == (requests, rows)
                assert ms == at_ms - self.running.at_ms > 0
                self.running = None
            case HomeBegan():
                assert self.drafting is None
                self.drafting = event
            case HomeEnded(requests, ms, at_ms):
                assert self.drafting is not None
                assert set(self.drafting.requests) == set(requests)
                assert ms == at_ms - self.drafting.at_ms
                self.drafting = None
            case Waited(ms):
                assert ms > 0
            case Committed(number, token_ids, sources):
                assert number in self.active
                assert len(token_ids) == len(sources)
                self.texts[number] += token_ids
            case Finished(number, reason, statistics):
                self.waiting.discard(number)
                self.active.discard(number)
                self.reasons[reason] += 1
                assert statistics.tokens == len(self.texts[number])
            case _:
                raise AssertionError(f"expected no {event}")


@pytest.mark.parametrize("home", [False, True], ids=["remotes", "home"])
def test_an_account_from_events_is_that_of_the_run(home: bool) -> None:
    counts: Counter[type[Event]] = Counter()
    for seed in range(60):
        ledger, failures = Ledger(), []
        run = Run(seed, home)

        def listen(event: Event, ledger: Ledger = ledger, failures: list = failures) -> None:
            try:  # What a subscriber raises is logged, and goes no further.
                ledger(event)
            except (AssertionError, KeyError) as error:
                failures.append(f"{event}: {error!r}")

        run.scheduler.events.subscribe(listen)
        run.play()
        assert not failures
        assert ledger.texts == run.texts
        assert ledger.reasons == run.reasons
        assert not ledger.waiting
        assert not ledger.active
        assert ledger.counts[PassBegan] == run.passes
        assert ledger.counts[Preempted] == run.scheduler.num_preempted
        counts += ledger.counts
    assert counts[Preempted]
    assert counts[Waited]
    assert bool(counts[HomeBegan]) == home


def test_a_scheduler_and_its_exchange_tell_the_same_subscribers() -> None:
    run = Run(0)
    assert run.scheduler.events is run.scheduler.exchange.events
    assert not run.scheduler.events.wanted
    ends = run.scheduler.events.subscribe(lambda event: None)
    assert run.scheduler.events.wanted
    ends()
    assert not run.scheduler.events.wanted
