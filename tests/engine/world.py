"""A scheduler and its exchange in virtual time, with drafters that lose, reorder, leave and lie."""

from dataclasses import replace
from heapq import heappop, heappush
from itertools import count
from random import Random

from tests.serving.fake_models import VOCAB_SIZE, continuation, guess, walk
from wanspec_kernels.control.home import DraftAtHome
from wanspec_kernels.control.tuning import TUNING
from wanspec_kernels.drafts.exchange import Exchange, ExchangeConfig
from wanspec_kernels.drafts.session import SessionConfig
from wanspec_kernels.engine.events import Committed, Finished
from wanspec_kernels.engine.pages import PageBook
from wanspec_kernels.engine.plan import PassPlan, Verdict
from wanspec_kernels.engine.request import Limits, Request
from wanspec_kernels.engine.scheduler import Scheduler, SchedulerLimits
from wanspec_kernels.wire import (
    Close,
    Commit,
    Draft,
    Expansion,
    Hello,
    Open,
    Ping,
    Pong,
    decode_frame,
    encode_frame,
)

VOCABULARY = bytes(range(32))
TARGET_MS, HOME_MS = 30.0, 4.0
PATIENCE_MS = 2 * TARGET_MS  # for one draft pass at home
PROMPT = (3, 1, 4, 1, 5)
KINDS = ("any", "silent", "leaves", "lies")


class Drafter:
    """A remote that drafts for all that it is asked for, over a link that misbehaves."""

    def __init__(self, world, name, kind):
        rng = self.rng = world.rng
        self.world, self.name, self.kind = world, name, kind
        self.texts = {}  # by request
        self.one_way_ms = rng.choice([1, 10, 30, 100])
        self.jitter_ms = rng.choice([0, 5, 60])
        self.loss = rng.choice([0, 0, 0.3, 0.9])
        self.repeat = rng.choice([0, 0, 0.5])
        self.step_ms = rng.choice([5, 15, 40])
        self.skill = rng.choice([0, 0.6, 0.9, 1])
        self.malice = 1.0 if kind == "lies" else rng.choice([0, 0, 0, 0.2])
        self.leaves_ms = rng.uniform(0.0, 500.0) if kind == "leaves" else None

    def join(self):
        self.texts.clear()
        self.say(Hello(VOCABULARY, "fake", self.rng.randrange(1, 9), 64, 0))

    def say(self, message, *, reliably=True):
        if reliably or self.rng.random() >= self.loss:
            delay_ms = self.one_way_ms + (0 if reliably else self.rng.random() * self.jitter_ms)
            self.world.at(delay_ms, self.world.receive, self, encode_frame([message]))

    def hear(self, data):
        for message in decode_frame(data):
            match message:
                case Ping(clock_us):
                    self.say(Pong(clock_us, 0))
                case Open():
                    self.texts[message.request] = list(message.token_ids)
                case Commit(request, length, token_ids) if request in self.texts:
                    text = self.texts[request]
                    if len(text) + len(token_ids) == length:
                        text += token_ids
                case Close(request):
                    self.texts.pop(request, None)

    def step(self):
        if self.leaves_ms is not None and self.world.now >= self.leaves_ms:
            self.world.leave(self)
            return
        if self.kind != "silent":
            for request, text in self.texts.items():
                draft = self.draft(request, text)
                for _ in range(1 + (self.rng.random() < self.repeat)):
                    self.say(draft, reliably=False)
        self.world.at(self.step_ms, self.step)

    def draft(self, request, text):
        rng = self.rng
        base = max(1, len(text) - rng.choice([0, 0, 0, 3]))
        depth = rng.randint(1, 6)
        honest = guess(rng, text, self.skill, depth, request=request, base_length=base)
        if rng.random() >= self.malice:
            return honest
        match rng.randrange(7):
            case 0:
                return replace(honest, base_check=honest.base_check ^ 1)
            case 1:
                return replace(honest, base_length=honest.base_length + rng.randint(1, 9))
            case 2:
                return Draft(request, base, honest.base_check, (VOCAB_SIZE + 5,), (-1,))
            case 3:
                return replace(honest, request=rng.choice([request + 1, 99]))
            case 4:
                junk = tuple(range(VOCAB_SIZE))
                return Draft(request, base, honest.base_check, junk, (-1,) * len(junk))
            case 5:
                return guess(rng, text, 0.0, depth, request=request)
            case _:
                draws = Expansion(-1, (0,), honest.token_ids[:1], (1,))
                return replace(honest, expansions=(draws,))


class World:
    """A heap of events. `run` goes on until every request has ended."""

    def __init__(self, seed, kinds=None, *, requests=4, tokens=30, home_pauses=0.0, wakes_ms=()):
        rng = self.rng = Random(seed)
        self.now = 0.0
        self.home_pauses = home_pauses
        self.exchange = Exchange(
            vocabulary=VOCABULARY,
            vocab_size=VOCAB_SIZE,
            now=0.0,
            config=ExchangeConfig(session=SessionConfig(heartbeat_ms=200)),
        )
        self.scheduler = Scheduler(
            vocab_size=VOCAB_SIZE,
            pages=PageBook(100, 4),
            limits=Limits(max_rows=rng.choice([1, 8, 64]), max_source_nodes=rng.choice([16, 1024])),
            batch=SchedulerLimits(max_batch=rng.choice([2, 64])),
            exchange=self.exchange,
            home=rng.random() < 0.6,
        )
        if kinds is None:
            kinds = ["any"] * rng.randint(0, 3)
        self.drafters = {f"{i}".encode(): Drafter(self, f"{i}", k) for i, k in enumerate(kinds)}
        self._heap, self._ticket = [], count()
        self.tokens = tokens
        self.texts, self.prompts, self.streams = {}, {}, {}
        self.longest_idle_ms = 0.0
        self._idle_since_ms = None
        self.statistics = {}
        self._passing = False
        for drafter in self.drafters.values():
            self.at(rng.uniform(0.0, 50.0), drafter.join)
            self.at(drafter.step_ms, drafter.step)
        for number in range(requests):
            self.at(rng.choice([0.0, rng.uniform(0.0, 300.0)]), self.submit, (*PROMPT, number))
        for wake_ms in wakes_ms:
            self.at(wake_ms, lambda: None)
        self._to_come = requests

    def at(self, delay_ms, call, *args):
        heappush(self._heap, (self.now + delay_ms, next(self._ticket), call, args))

    def run(self):
        while self._to_come or self.scheduler.sequences:
            wakes = [self.exchange.wake_at(), self.scheduler.wake_at()]
            wake = min((at for at in wakes if at is not None), default=None)
            if self._heap and (wake is None or self._heap[0][0] <= wake):
                self.now, _, call, args = heappop(self._heap)
                call(*args)
            else:
                self.now = max(self.now, wake)
            self.act()
            assert self.now < 1e6, "stuck"
        for drafter in self.drafters.values():
            self.leave(drafter)
        self.exchange.to_send(self.now)
        return self

    def act(self):
        self.take(self.scheduler.ended(self.now))
        while (action := self.scheduler.step(self.now)) is not None:
            match action:
                case PassPlan():
                    self.scheduler.began(self.now)
                    if self._idle_since_ms is not None:
                        idle_ms = self.now - self._idle_since_ms
                        self.longest_idle_ms = max(self.longest_idle_ms, idle_ms)
                    self._idle_since_ms, self._passing = None, True
                    self.at(TARGET_MS, self.end_pass, action)
                case DraftAtHome():
                    paused = self.rng.random() < self.home_pauses
                    pause_ms = self.rng.choice([100.0, 1000.0, 1e5]) if paused else 0.0
                    self.at(HOME_MS + pause_ms, self.end_home, action)
        if self.scheduler.num_active and not self._passing:
            if self._idle_since_ms is None:
                self._idle_since_ms = self.now
            # An idle target with work at hand is always woken by something that has a time.
            wake = self.scheduler.wake_at()
            assert wake is not None
            assert wake - self.now <= PATIENCE_MS + 1e-6
        elif not self._passing:
            self._idle_since_ms = None
        for outgoing in self.exchange.to_send(self.now):
            drafter = self.drafters[outgoing.peer]
            self.at(drafter.one_way_ms, drafter.hear, outgoing.frame.data)

    @property
    def bound_ms(self):
        """Of what an idle target may wait."""
        wait_ms = TUNING.max_wait_passes * TARGET_MS
        if self.scheduler.home is None:
            return wait_ms
        paused_ms = PATIENCE_MS if self.home_pauses else 0.0
        return wait_ms + TUNING.max_home_passes * HOME_MS + paused_ms

    def submit(self, prompt):
        self._to_come -= 1
        sequence = self.scheduler.submit(Request(prompt, self.tokens), self.now)
        self.prompts[sequence.number] = prompt
        self.texts[sequence.number] = []
        self.statistics[sequence.number] = sequence.statistics

    def end_pass(self, plan):
        self._passing = False
        verdicts = []
        for part in plan.parts:
            if part.tree is not None:
                text = list(self.scheduler.sequences[part.request].token_ids)
                verdicts.append(Verdict(part.request, *map(tuple, walk(text, part.tree))))
        self.take(self.scheduler.verdict(verdicts, self.now))

    def end_home(self, drafting):
        found = {
            job.request: [guess(self.rng, job.token_ids, 0.8, 1, request=job.request)]
            for job in drafting.jobs
            if self.rng.random() < 0.7
        }
        self.scheduler.drafted(found, self.now)

    def take(self, events):
        for event in events:
            match event:
                case Committed(request, token_ids):
                    self.texts[request] += token_ids
                case Finished(_, reason):
                    assert reason == "length"

    def receive(self, drafter, data):
        if self.exchange.receive(drafter.name.encode(), drafter.name, [data], self.now):
            self.scheduler.offered(self.now)

    def leave(self, drafter):
        self.exchange.disconnected(drafter.name.encode())

    def check(self):
        """All texts are the target's own, no wait was too long, and nothing is left."""
        for number, text in self.texts.items():
            assert text == continuation(self.prompts[number], self.tokens)
        assert self.longest_idle_ms <= self.bound_ms + 1e-6
        for s in self.statistics.values():
            assert s.target_passes <= s.tokens == self.tokens
        sources = self.exchange.sources
        left = [self.exchange.texts, self.exchange.sessions, self.exchange._asked]
        left += [self.exchange._stale, self.exchange._peers, self.exchange._keeping_up]
        left += [sources.paces, sources.usefulness._records, sources.worths._of.keys() - {0}]
        left += [self.scheduler.sequences, self.scheduler._active, self.scheduler._waiting]
        left += [self.scheduler._deadlines, self.scheduler._ended]
        if self.scheduler.home is not None:
            left += [self.scheduler.home._spent, self.scheduler.home._read]
        assert not any(left), left
        assert self.scheduler.pages.num_free == self.scheduler.pages.num_pages
