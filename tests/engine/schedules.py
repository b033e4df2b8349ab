"""A scheduler driven through random events in virtual time, with a target that is a function."""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from tests.serving.fake_models import VOCAB_SIZE, continuation, guess, walk
from wanspec_kernels.control.home import DraftAtHome
from wanspec_kernels.control.tuning import TUNING
from wanspec_kernels.drafts.pool import Kind
from wanspec_kernels.engine.events import Committed, Finished, News
from wanspec_kernels.engine.pages import PageBook
from wanspec_kernels.engine.plan import PassPlan, Verdict
from wanspec_kernels.engine.request import Limits, Request
from wanspec_kernels.engine.scheduler import (
    RefusedError,
    Scheduler,
    SchedulerLimits,
)

PAGE_SIZE = 4
SOURCES = (1, 2, 3)
MAX_ROWS, CHUNK_ROWS, MAX_QUEUE = 30, 7, 6
STALL_MS = 40.0
FIRST_GUESS_MS = 30.0  # of PassTimes
LONGEST_PASS_MS = 5.0 + 0.2 * MAX_ROWS + STALL_MS


def most_passes(request: Request) -> int:
    """Until the oldest request has ended: each pass reads a chunk of its text or adds to it."""
    length = len(request.token_ids) + request.max_tokens
    return -(-length // CHUNK_ROWS) + request.max_tokens


@dataclass
class Run:
    """One random schedule; `play` goes on until every request has ended."""

    seed: int
    home: bool = False
    num_pages: int = 24
    now: float = 0.0
    texts: dict[int, list[int]] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)
    passes: int = 0
    longest_wait_ms: float = 0.0  # of the idle target, with work at hand
    reasons: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        self.pages = PageBook(self.num_pages, PAGE_SIZE)
        self.scheduler = Scheduler(
            vocab_size=VOCAB_SIZE,
            pages=self.pages,
            limits=Limits(max_rows=12, max_depth=8),
            batch=SchedulerLimits(
                max_batch=5, max_rows=MAX_ROWS, chunk_rows=CHUNK_ROWS, max_queue=MAX_QUEUE
            ),
            home=self.home,
        )
        self.requests: dict[int, Request] = {}
        self._last_pass: dict[int, int] = {}  # by which each request has ended at the latest
        self._submitted: dict[int, float] = {}
        self._told: set[int] = set()  # who was cancelled or stopped: nothing more is committed
        self._in_pass: frozenset[int] = frozenset()  # of the last pass that ended
        self._pass: tuple[float, PassPlan] | None = None  # when it ends
        self._drafting: tuple[float, DraftAtHome] | None = None
        self._arrivals = self.rng.randrange(3, 9)
        self._free_ms: float | None = None

    def play(self) -> None:
        while self._arrivals or self.scheduler.sequences:
            self._take(self.scheduler.ended(self.now))
            self._step()
            self._check()
            self._happen()

    def _step(self) -> None:
        action = self.scheduler.step(self.now)
        match action:
            case PassPlan():
                if self._free_ms is not None:
                    self._note_wait(self.now - self._free_ms)
                self.scheduler.began(self.now)
                self._pass = (self.now + self._pass_ms(action), action)
                self._free_ms = None
                self.passes += 1
            case DraftAtHome():
                self._drafting = (self.now + self.rng.choice((0.5, 1.0, 90.0)), action)
            case None:
                if not self.scheduler.num_active:
                    self._free_ms = None
                elif not self._pass and self._free_ms is None:
                    self._free_ms = self.now

    def _note_wait(self, ms: float) -> None:
        """It may wait for remotes, and for each draft pass at home no longer than for two passes.

        A pass is thought to take as long as those that have been seen.
        """
        target_ms = max(FIRST_GUESS_MS, LONGEST_PASS_MS)
        at_home = TUNING.home_patience_passes * TUNING.max_home_passes if self.home else 0.0
        assert ms <= (TUNING.max_wait_passes + at_home) * target_ms
        self.longest_wait_ms = max(self.longest_wait_ms, ms)

    def _pass_ms(self, plan: PassPlan) -> float:
        return 5.0 + 0.2 * plan.num_rows + self.rng.choice((0.0, 0.0, 0.0, STALL_MS))

    def _happen(self) -> None:
        """Whatever comes next: by the clock, or by chance before it."""
        due = [at for at, _ in filter(None, (self._pass, self._drafting))]
        wake = self.scheduler.wake_at()
        if wake is not None:
            due.append(wake)
        # Whoever is there is waited for by something that has a time.
        assert due or not self.scheduler.sequences
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
        elif kind < 0.17 and self.scheduler.sequences:
            number = self.rng.choice(list(self.scheduler.sequences))
            end = self.rng.choice((self.scheduler.cancel, self.scheduler.stop))
            self._take(end(number, self.now))
            self._told.add(number)
        elif self.scheduler.sequences:
            sequence = self.rng.choice(list(self.scheduler.sequences.values()))
            source = self.rng.choice(SOURCES)
            if kind < 0.25:
                sequence.text.retire(source)
            elif kind < 0.4 or source not in sequence.pool.enrolled:
                sequence.text.enrol(source, str(source), 20.0)
            else:
                self._offer(sequence.number, source)

    def _submit(self) -> None:
        self._arrivals -= 1
        shared = [1, 2, 3, 4, 5, 6, 7, 8, 9][: self.rng.choice((0, 5, 9))]
        prompt = (
            *shared,
            *(self.rng.randrange(VOCAB_SIZE) for _ in range(self.rng.randrange(1, 30))),
        )
        deadline_ms = self.rng.choice((None, None, None, self.rng.uniform(1.0, 900.0)))
        request = Request(prompt, self.rng.randrange(1, 30), deadline_ms=deadline_ms)
        try:
            number = self.scheduler.submit(request, self.now).number
        except RefusedError:
            assert self.scheduler.num_waiting >= MAX_QUEUE
            self.reasons["refused"] += 1
            return
        self.requests[number] = request
        self.texts[number] = []
        self._submitted[number] = self.now
        others = [sequence.request for sequence in self.scheduler.sequences.values()]
        self._last_pass[number] = self.passes + sum(map(most_passes, others))

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
        self._in_pass = frozenset(part.request for part in plan.parts)
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

    def _take(self, events: list[News]) -> None:
        for event in events:
            match event:
                case Committed(request, token_ids):
                    assert request not in self._told
                    self.texts[request] += token_ids
                case Finished(request, reason):
                    assert request not in self.ended
                    self.ended[request] = reason
                    self.reasons[reason] += 1
                    assert self.passes <= self._last_pass[request]
                    if reason == "deadline":
                        self._check_deadline(request)

    def _check_deadline(self, number: int) -> None:
        """It ends when its time is up, or with the pass that it takes part in then."""
        sequence_ms = self.requests[number].deadline_ms
        assert sequence_ms is not None
        late = self.now - (self._submitted[number] + sequence_ms)
        assert -1e-6 <= late <= (LONGEST_PASS_MS if number in self._in_pass else 1e-6)

    def _check(self) -> None:
        held = {p for n in self.scheduler.sequences for p in self.pages.pages_of(n)}
        assert self.pages.num_free == self.num_pages - len(held)
        # First come, first served: nobody holds pages whom a request that waits came before.
        admitted = [n for n in self.scheduler.sequences if self.pages.pages_of(n)]
        waiting = self.scheduler.sequences.keys() - admitted
        assert max(admitted, default=0) < min(waiting, default=1 << 30)
        for number, text in self.texts.items():
            assert text == continuation(self.requests[number].token_ids, len(text))


def play(seed: int, home: bool) -> Run:
    """One schedule to its end, where every request has ended and every page is free."""
    run = Run(seed, home)
    run.play()
    assert run.ended.keys() == run.requests.keys()
    for number, reason in run.ended.items():
        whole = len(run.texts[number]) == run.requests[number].max_tokens
        assert whole == (reason == "length")
    assert run.pages.num_free == run.num_pages
    return run
