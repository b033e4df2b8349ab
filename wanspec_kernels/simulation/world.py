"""World: an engine's scheduler, its requests and its drafters in virtual time."""

from collections.abc import Callable, Generator
from typing import Any

import simpy

from drafter.home import HomeDrafter
from drafter.session import Session
from wanspec_kernels.control.home import DraftAtHome
from wanspec_kernels.drafts.exchange import Exchange
from wanspec_kernels.engine.events import Committed, Finished
from wanspec_kernels.engine.pages import PageBook
from wanspec_kernels.engine.plan import PassPlan, Verdict
from wanspec_kernels.engine.request import Request
from wanspec_kernels.engine.scheduler import Scheduler
from wanspec_kernels.engine.sequence import Sequence
from wanspec_kernels.engine.statistics import Statistics
from wanspec_kernels.events import Event
from wanspec_kernels.simulation.machine import Accelerator, Clock
from wanspec_kernels.simulation.record import PassRun, Progress, Record, RequestRun
from wanspec_kernels.simulation.remote import VOCABULARY, NewSession, Remote
from wanspec_kernels.simulation.scenario import Scenario
from wanspec_kernels.simulation.trace import Trace
from wanspec_kernels.simulation.traced import PROMPT, TracedProposer, TracedText
from wanspec_kernels.wire import MAX_TREE_NODES

PAGE_SIZE = 16


GREETING_MS = 1000.0  # Drafters were there before the requests; at most so long is waited for it.


class World:
    """Runs a scenario once; times are in ms of virtual time from 0.

    `on_event` is told all that the verifier's exchange and scheduler tell, as it happens.
    `new_session` makes what every drafter elsewhere is.
    """

    def __init__(
        self,
        scenario: Scenario,
        on_event: Callable[[Event], None] = lambda event: None,
        *,
        new_session: NewSession = Session,
    ) -> None:
        s = self.scenario = scenario
        self.env = simpy.Environment()
        self.clock = Clock(self.env)
        self.target = Accelerator(self.env)
        self.home = self.target if s.shares_accelerator else Accelerator(self.env)
        self.record = Record()
        self.sequences: dict[int, Sequence] = {}  # alive, by the scheduler's number
        self.texts: dict[int, TracedText] = {}  # by the same number
        self._on_event = on_event
        self._left = s.requests
        self._started_ms = 0.0
        self._stories: dict[int, int] = {}  # which of the scenario's texts has which number
        self._progress: dict[int, Progress] = {}  # by text
        self._statistics: dict[int, Statistics] = {}
        self._process = 0  # of the verifier: what earlier ones asked for is lost
        self._alarm = 0
        self._home_passes = 0  # since the last pass of the target began
        self._drafted = [self._texts_of(profile.trace) for profile in s.drafters]
        seats = -(-s.requests // max(1, len(s.drafters))) if s.shares_drafters else s.requests
        self.remotes = [
            Remote(
                self.env,
                number,
                profile,
                TracedProposer(s.trace.vocab_size, self._drafted[number - 1], s.context),
                max_requests=seats,
                seed=s.seed,
                new_session=new_session,
                hear=self._hear,
                gone=self._lose,
            )
            for number, profile in enumerate(s.drafters, 1)
        ]
        for story in range(1, s.requests + 1):
            self._write(story)
        self._written = dict(self.texts), [dict(texts) for texts in self._drafted]
        self._begin_process()
        self.env.process(self._beat())

    def run(self) -> list[RequestRun]:
        if not self._progress:
            while self.env.now < GREETING_MS and len(self.exchange.sessions) < len(self.remotes):
                self.env.step()
            self.start()
        while self._left:  # heartbeats would go on for ever
            self.env.step()
        self._complete_record()
        return self.record.runs

    def start(self) -> None:
        """The requests come when the scenario says."""
        self._started_ms = self.env.now
        arrivals = [*self.scenario.arrivals_ms, *[0.0] * self.scenario.requests]
        for story, ms in zip(range(1, self.scenario.requests + 1), arrivals, strict=False):
            if ms > 0:
                timeout = self.env.timeout(ms, story)
                assert timeout.callbacks is not None
                timeout.callbacks.append(self._arrive)
            else:
                self._submit(story)
        self._act()

    def restart(self) -> None:
        """Another process in the verifier's place: drafters have to dial again.

        It knows nothing of before but the texts, which it is asked to go on with.
        """
        for remote in self.remotes:
            remote.disconnect()
        self._begin_process()
        alive = [self._stories[number] for number in self.sequences]
        self.sequences.clear()
        for story in alive:
            self._submit(story)
        self._act()

    def _begin_process(self) -> None:
        s = self.scenario
        self._process += 1
        self.target.restart()
        self.home.restart()
        longest = len(PROMPT) + s.tokens + s.limits.max_rows + PAGE_SIZE
        self.exchange = Exchange(
            vocabulary=VOCABULARY, vocab_size=s.trace.vocab_size, now=self.clock.now_ms
        )
        self.exchange.events.subscribe(self._on_event)
        self.scheduler = Scheduler(
            vocab_size=s.trace.vocab_size,
            pages=PageBook(s.requests * -(-longest // PAGE_SIZE), PAGE_SIZE),
            limits=s.limits,
            batch=s.batch,
            exchange=self.exchange,
            home=s.home is not None,
        )
        self._proposer = TracedProposer(s.trace.vocab_size, self.texts, s.context)
        self._home_drafter = HomeDrafter(self._proposer, shape=s.home_shape)
        self._open_at_home: set[int] = set()

    def _write(self, story: int) -> None:
        s = self.scenario
        # Beyond the last token: what a tree may still reach.
        length, seed = s.tokens + 2 * s.limits.max_depth, s.seed * 1_000_003 + story
        self.texts[story] = TracedText(s.trace, length, seed)
        for profile, texts in zip(s.drafters, self._drafted, strict=True):
            if profile.trace is not None:
                texts[story] = TracedText(profile.trace, length, seed)

    def _texts_of(self, trace: Trace | None) -> dict[int, TracedText]:
        """What a drafter's model is played back from; its own trace is of the target's texts."""
        if trace is None:
            return self.texts
        if not trace.same_texts(self.scenario.trace):
            raise ValueError("a drafter's trace: expected the texts of the scenario's trace")
        return {}

    def _arrive(self, timeout: simpy.Event) -> None:
        assert timeout.value is not None
        self._submit(timeout.value)
        self._act()

    def _submit(self, story: int) -> None:
        """A request comes, or goes on after a restart."""
        now = self.env.now
        progress = self._progress.setdefault(story, Progress(now, now))
        left = self.scenario.tokens - len(progress.token_ids)
        request = Request((*PROMPT, *progress.token_ids), left)
        sequence = self.scheduler.submit(request, self.clock.now_ms)
        number = sequence.number
        self._stories[number] = story
        texts, drafted = self._written
        self.texts[number] = texts[story]
        for mine, written in zip(self._drafted, drafted, strict=True):
            mine[number] = written[story]
        self.sequences[number] = sequence
        self._statistics[story] = sequence.statistics

    def _hear(self, remote: Remote, data: bytes) -> None:
        """A drafter's frame has arrived."""
        exchange, now = self.exchange, self.clock.now_ms
        refusal = exchange.admission.judge(remote.key, len(data), now)
        if refusal is not None:
            exchange.refused(remote.peer, remote.key, refusal, now)
        elif exchange.receive(remote.peer, remote.key, [data], now):
            self.scheduler.offered(now)
            self._act()
        self._send()

    def _lose(self, remote: Remote) -> None:
        self.exchange.disconnected(remote.peer)

    def _send(self) -> None:
        """Carry what the exchange has to say."""
        now = self.clock.now_ms
        remotes = {remote.peer: remote for remote in self.remotes if remote.is_connected}
        for outgoing in self.exchange.to_send(now):
            if outgoing.peer in remotes:
                remotes[outgoing.peer].send(outgoing.frame.data)
            else:
                self.exchange.undelivered(outgoing, now, is_gone=True)

    def _beat(self) -> Generator[simpy.Event, Any, None]:
        while True:
            yield self.env.timeout(max(1.0, self.exchange.wake_at() - self.clock.now_ms))
            self._send()

    def _act(self) -> None:
        """Start all that the scheduler wants run now, and set its timer."""
        while (action := self.scheduler.step(self.clock.now_ms)) is not None:
            match action:
                case PassPlan():
                    self._verify(action)
                case DraftAtHome():
                    self._draft(action)
        self._send()
        self._alarm += 1
        wake_ms = self.scheduler.wake_at()
        if wake_ms is not None and not self.scheduler.is_running:
            alarm = self.env.timeout(max(0.0, wake_ms - self.clock.now_ms), self._alarm)
            assert alarm.callbacks is not None
            alarm.callbacks.append(self._ring)

    def _ring(self, alarm: simpy.Event) -> None:
        if alarm.value == self._alarm:  # else it was set anew
            self._act()

    def _verify(self, plan: PassPlan) -> None:
        s, process = self.scenario, self._process
        context = sum(s.context + part.context_len + len(part.prefix) for part in plan.parts)
        begun_ms = self.env.now
        home_passes, self._home_passes = self._home_passes, 0

        def began() -> None:
            nonlocal begun_ms
            if process == self._process:
                begun_ms = self.env.now
                self.scheduler.began(self.clock.now_ms)

        def ended() -> None:
            if process == self._process:
                self._pass_ended(plan, begun_ms, home_passes)

        self.target.run(s.target.time_ms(plan.num_rows, context), ended, began)

    def _pass_ended(self, plan: PassPlan, began_ms: float, home_passes: int) -> None:
        now, verdicts = self.env.now, []
        for part in plan.parts:
            if part.tree is not None:
                done = len(self._progress[self._stories[part.request]].token_ids)
                said, accepted = self.texts[part.request].verify(done, part.tree)
                verdicts.append(Verdict(part.request, tuple(said), tuple(accepted)))
        tokens = 0
        for event in self.scheduler.verdict(verdicts, self.clock.now_ms):
            match event:
                case Committed(number, token_ids):
                    tokens += len(token_ids)
                    self._progress[self._stories[number]].commit(token_ids, now)
                case Finished(number):
                    self._finish(number)
        self.record.passes.append(
            PassRun(began_ms, now, len(verdicts), plan.num_rows, tokens, home_passes)
        )
        self._act()

    def _finish(self, number: int) -> None:
        self._left -= 1
        if self.record.first_finish_ms is None:
            self.record.first_finish_ms = self.env.now
        del self.sequences[number]
        self._home_drafter.close(number)
        self._open_at_home.discard(number)

    def _draft(self, drafting: DraftAtHome) -> None:
        s, process, proposer = self.scenario, self._process, self._proposer
        assert s.home is not None
        rows, context = proposer.rows, proposer.context
        for job in drafting.jobs:
            if job.request not in self._open_at_home:
                self._open_at_home.add(job.request)
                sequence = self.sequences[job.request]
                self._home_drafter.open(sequence.open_message(MAX_TREE_NODES, home=True))
        drafts = self._home_drafter.draft_all(
            [(job.request, job.token_ids, job.known) for job in drafting.jobs]
        )
        self._home_passes += 1

        def ended() -> None:
            if process == self._process:
                self.scheduler.drafted(drafts, self.clock.now_ms)
                self._act()

        took_ms = s.home.time_ms(proposer.rows - rows, proposer.context - context)
        self.home.run(took_ms, ended)

    def _complete_record(self) -> None:
        record = self.record
        record.runs = [
            progress.run(self._written[0][story].token_ids, self._statistics[story])
            for story, progress in sorted(self._progress.items())
        ]
        record.ended_ms = self.env.now - self._started_ms
        record.busy_ms = self.target.busy_ms
        if self.home is not self.target:
            record.busy_ms += self.home.busy_ms
        record.up_messages = [remote.up.num_messages for remote in self.remotes]
        record.up_bytes = [remote.up.num_bytes for remote in self.remotes]
        record.down_bytes = [remote.down.num_bytes for remote in self.remotes]
        record.nodes_received = sum(r.drafter.counters.num_nodes for r in self.remotes)
