"""Serving: one request at the verifier in virtual time, as the service drives it in real time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import simpy

from drafter.home import HomeDrafter
from wanspec_kernels.control.estimates import Estimates
from wanspec_kernels.engine.actions import Action, Committed, DraftAtHome, Finished, StartPass
from wanspec_kernels.engine.generation import Generation
from wanspec_kernels.engine.request import Request
from wanspec_kernels.engine.statistics import Statistics
from wanspec_kernels.simulation.machine import Batcher, Clock
from wanspec_kernels.simulation.scenario import Scenario
from wanspec_kernels.simulation.traced import PROMPT, TracedProposer, TracedText
from wanspec_kernels.tree import HostTree
from wanspec_kernels.wire import MAX_TREE_NODES, Draft


@dataclass(frozen=True, slots=True)
class RequestRun:
    """One request from its first decision to its last token."""

    token_ids: list[int]
    expected_ids: list[int]  # what the target alone says
    elapsed_ms: float
    token_ms: list[float]  # of each token: its share of the round that brought it
    statistics: Statistics


class Serving:
    def __init__(
        self,
        env: simpy.Environment,
        number: int,
        scenario: Scenario,
        text: TracedText,
        *,
        clock: Clock,
        estimates: Estimates,
        target: Batcher,
        home: Batcher | None,
        home_proposer: TracedProposer,
        on_commit: Callable[[Generation], None],
        on_finish: Callable[[int], None],
        on_event: Callable[[Committed], None] = lambda event: None,
    ) -> None:
        self.number = number
        self._env, self._clock, self._text, self._scenario = env, clock, text, scenario
        self._target, self._home_machine = target, home
        self._proposer = home_proposer
        self._alarm_ms: float | None = None  # when it rings; None: it is not set
        self._before: list[int] = []  # output of requests that a restart has ended
        self._begin(estimates)
        self._on_commit, self._on_finish, self._on_event = on_commit, on_finish, on_event
        self._began_ms = self._last_ms = env.now
        self._token_ms: list[float] = []

    def start(self) -> None:
        self._began_ms = self._last_ms = self._env.now
        self._act(self.generation.start(self._clock.now_ms))

    def restart(self, estimates: Estimates) -> None:
        """The verifier's process ends, and another goes on with the text so far as its prompt."""
        self._before += self.generation.output_ids
        self._begin(estimates)
        self._act(self.generation.start(self._clock.now_ms))

    def poke(self) -> None:
        """A draft was offered."""
        self._act(self.generation.tick(self._clock.now_ms))

    def run(self) -> RequestRun:
        assert self.generation.done
        output = self._before + self.generation.output_ids
        return RequestRun(
            output,
            self._text.token_ids[: len(output)],
            self._last_ms - self._began_ms,
            self._token_ms,
            self.generation.statistics,
        )

    def _begin(self, estimates: Estimates) -> None:
        s = self._scenario
        left = s.tokens - len(self._before)
        self.generation = Generation(
            Request((*PROMPT, *self._before), left),
            number=self.number,
            vocab_size=s.trace.vocab_size,
            policy=s.policy,
            estimates=estimates,
            limits=s.limits,
            home=self._home_machine is not None,
        )
        self._home = HomeDrafter(self._proposer, shape=s.home_shape)
        self._home_is_open = False

    def _act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case StartPass(tree):
                    self._verify(tree)
                case DraftAtHome(token_ids, passes, known):
                    self._draft(token_ids, passes, known)
                case Committed(token_ids):
                    took_ms, self._last_ms = self._env.now - self._last_ms, self._env.now
                    self._token_ms += [took_ms / len(token_ids)] * len(token_ids)
                    self._on_event(action)
                    self._on_commit(self.generation)
                case Finished():
                    self._on_finish(self.number)
        self._set_alarm()

    def _set_alarm(self) -> None:
        wake_at_ms = self.generation.wake_at_ms
        if wake_at_ms == self._alarm_ms:
            return
        self._alarm_ms = wake_at_ms
        if wake_at_ms is not None:
            alarm = self._env.timeout(max(0.0, wake_at_ms - self._clock.now_ms), wake_at_ms)
            assert alarm.callbacks is not None
            alarm.callbacks.append(self._ring)

    def _ring(self, alarm: simpy.Event) -> None:
        if alarm.value == self._alarm_ms:  # else it has been set anew
            self._alarm_ms = None
            self.poke()

    def _verify(self, tree: HostTree) -> None:
        generation = self.generation
        done = generation.pool.length - len(PROMPT)

        def ended() -> None:
            if generation is self.generation:
                verdict = self._text.verify(done, tree)
                self._act(generation.pass_finished(*verdict, self._clock.now_ms))

        self._target.submit(len(tree.token_ids), ended)

    def _draft(self, token_ids: Sequence[int], passes: int, known: Draft | None) -> None:
        assert self._home_machine is not None
        if not self._home_is_open:
            self._home.open(self.generation.open_message(MAX_TREE_NODES, home=True))
            self._home_is_open = True
        generation, before = self.generation, self._proposer.rows
        drafts = self._home.draft(self.number, token_ids, passes, known)
        rows = (self._proposer.rows - before) // passes

        def ended(left: int) -> None:
            if left:
                machine = self._home_machine
                assert machine is not None
                machine.submit(rows, lambda: ended(left - 1))
            elif generation is self.generation:
                self._act(generation.home_finished(drafts, self._clock.now_ms))

        ended(passes)
