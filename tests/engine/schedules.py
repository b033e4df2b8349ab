"""A scheduler driven through random events in virtual time, with a target that is a function."""

from dataclasses import dataclass, field
from random import Random

from tests.serving.fake_models import VOCAB_SIZE, continuation, guess, walk
from wanspec_kernels.control.home import DraftAtHome
from wanspec_kernels.drafts.pool import Kind
from wanspec_kernels.engine.pages import PageBook
from wanspec_kernels.engine.plan import PassPlan, Verdict
from wanspec_kernels.engine.request import Limits, Request
from wanspec_kernels.engine.scheduler import (
    Committed,
    Event,
    Finished,
    Scheduler,
    SchedulerLimits,
)

PAGE_SIZE = 4
SOURCES = (1, 2, 3)


@dataclass
class Run:
    """One random schedule; `play` goes on until every request has ended."""

    seed: int
    home: bool = False
    num_pages: int = 24
    now: float = 0.0
    texts: dict[int, list[int]] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)  # of the idle target, with work at hand
    passes: int = 0

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        self.pages = PageBook(self.num_pages, PAGE_SIZE)
        self.scheduler = Scheduler(
            vocab_size=VOCAB_SIZE,
            pages=self.pages,
            limits=Limits(max_rows=12, max_depth=8),
            batch=SchedulerLimits(max_batch=5, max_rows=30, chunk_rows=7, max_queue=6),
            home=self.home,
        )
        self.requests: dict[int, Request] = {}
        self._pass: tuple[float, PassPlan] | None = None  # when it ends
        self._drafting: tuple[float, DraftAtHome] | None = None
        self._arrivals = self.rng.randrange(3, 9)
        self._free_ms: float | None = None

    def play(self) -> None:
        while self._arrivals or self.scheduler.sequences:
            self._step()
            self._check()
            self._happen()

    def _step(self) -> None:
        action = self.scheduler.step(self.now)
        match action:
            case PassPlan():
                if self._free_ms is not None:
                    self.waits.append(self.now - self._free_ms)
                self.scheduler.began(self.now)
                self._pass = (self.now + self._pass_ms(action), action)
                self._free_ms = None
                self.passes += 1
            case DraftAtHome():
                self._drafting = (self.now + self.rng.choice((0.5, 1.0, 90.0)), action)
            case None:
                if not self._pass and self.scheduler.num_active and self._free_ms is None:
                    self._free_ms = self.now

    def _pass_ms(self, plan: PassPlan) -> float:
        return 5.0 + 0.2 * plan.num_rows + self.rng.choice((0.0, 0.0, 0.0, 40.0))

    def _happen(self) -> None:
        """Whatever comes next: by the clock, or by chance before it."""
        due = [at for at, _ in filter(None, (self._pass, self._drafting))]
        wake = self.scheduler.wake_at()
        if wake is not None and not self._pass:
            due.append(wake)
        until = min(due, default=self.now + 5.0)
        if self.rng.random() < 0.6:
            self.now += self.rng.random() * max(0.0, until - self.now)
            self._chance()
            return
        self.now = max(self.now, until)
        if self._pass and self.now >= self._pass[0]:
            self._end_pass(self._pass[1])
        elif self._drafting and self.now >= self._drafting[0]:
            self._end_drafting(self._drafting[1])

    def _chance(self) -> None:
        kind = self.rng.random()
        if kind < 0.15 and self._arrivals:
            self._submit()
        elif kind < 0.2 and self.scheduler.sequences:
            number = self.rng.choice(list(self.scheduler.sequences))
            self._take(self.scheduler.cancel(number, self.now))
        elif self.scheduler.sequences:
            sequence = self.rng.choice(list(self.scheduler.sequences.values()))
            source = self.rng.choice(SOURCES)
            if kind < 0.25:
                sequence.retire(source)
            elif kind < 0.4 or source not in sequence.pool.enrolled:
                sequence.enrol(source, 20.0)
            else:
                self._offer(sequence.number, source)

    def _submit(self) -> None:
        self._arrivals -= 1
        shared = [1, 2, 3, 4, 5, 6, 7, 8, 9][: self.rng.choice((0, 5, 9))]
        prompt = (
            *shared,
            *(self.rng.randrange(VOCAB_SIZE) for _ in range(self.rng.randrange(1, 30))),
        )
        request = Request(prompt, self.rng.randrange(1, 30))
        number = self.scheduler.submit(request, self.now).number
        self.requests[number] = request
        self.texts[number] = []

    def _offer(self, number: int, source: int) -> None:
        sequence = self.scheduler.sequences[number]
        begin = len(self.requests[number].token_ids)
        base = self.rng.randrange(begin, len(sequence.token_ids) + 1)
        skill = (1.0, 0.6, 0.0)[source - 1]
        text = sequence.token_ids[:base] if self.rng.random() < 0.3 else sequence.token_ids
        draft = guess(self.rng, text, skill, 6, request=number, branches=2)
        outcome = sequence.offer(source, draft, self.now)
        assert outcome.kind is not Kind.INVALID
        self.scheduler.offered(self.now)

    def _end_pass(self, plan: PassPlan) -> None:
        self._pass = None
        verdicts = []
        for part in plan.parts:
            sequence = self.scheduler.sequences[part.request]
            text = sequence.token_ids
            # What is read is the text, from where it had been read to.
            end = part.context_len + len(part.prefix)
            assert list(part.prefix) == text[part.context_len : end]
            assert end + (0 if part.tree is None else len(part.tree.token_ids)) <= PAGE_SIZE * len(
                part.pages
            )
            if part.tree is None:
                continue
            assert end == len(text) - 1
            assert part.tree.token_ids[0] == text[-1]
            verdicts.append(Verdict(part.request, *map(tuple, walk(list(text), part.tree))))
        self._take(self.scheduler.verdict(verdicts, self.now))

    def _end_drafting(self, drafting: DraftAtHome) -> None:
        self._drafting = None
        drafts = {
            job.request: [guess(self.rng, job.token_ids, 0.7, 2, request=job.request)]
            for job in drafting.jobs
            if self.rng.random() < 0.8
        }
        self.scheduler.drafted(drafts, self.now)

    def _take(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Committed(request, token_ids):
                    self.texts[request] += token_ids
                case Finished(request, reason):
                    assert request not in self.ended
                    self.ended[request] = reason

    def _check(self) -> None:
        held = {p for n in self.scheduler.sequences for p in self.pages.pages_of(n)}
        assert self.pages.num_free == self.num_pages - len(held)
        for number, text in self.texts.items():
            assert text == continuation(self.requests[number].token_ids, len(text))
