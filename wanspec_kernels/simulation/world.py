"""World: a verifier, its requests and its drafters in virtual time."""

from collections.abc import Callable

import simpy

from wanspec_kernels.control.estimates import Estimates
from wanspec_kernels.engine.actions import Committed
from wanspec_kernels.engine.generation import Generation
from wanspec_kernels.events import Offered
from wanspec_kernels.simulation.machine import Batcher, Clock
from wanspec_kernels.simulation.remote import Remote
from wanspec_kernels.simulation.scenario import Scenario
from wanspec_kernels.simulation.serving import RequestRun, Serving
from wanspec_kernels.simulation.trace import Trace
from wanspec_kernels.simulation.traced import TracedProposer, TracedText

GREETING_MS = 1000.0  # after which requests begin in any case


class World:
    """Runs a scenario once; times are in ms of virtual time from 0.

    `on_event` is told of every draft that was offered and of every commit, as it happens.
    """

    def __init__(
        self,
        scenario: Scenario,
        on_event: Callable[[Offered | Committed], None] = lambda event: None,
    ) -> None:
        s = self.scenario = scenario
        self.env = simpy.Environment()
        self.clock = Clock(self.env)
        self.estimates = Estimates()
        self.generations: dict[int, Generation] = {}
        self.target = Batcher(
            self.env,
            s.target,
            s.max_batch,
            gather_ms=s.gather_passes * s.target.time_ms(1),
            expected=lambda: self._left,
        )
        self.home = Batcher(self.env, s.home, s.max_batch) if s.home is not None else None
        self.servings: dict[int, Serving] = {}
        self.texts: dict[int, TracedText] = {}
        self._left = s.requests
        drafted = [self._texts_of(profile.trace) for profile in s.drafters]
        self.remotes = [
            Remote(
                self.env,
                number,
                profile,
                TracedProposer(s.trace.vocab_size, drafted[number - 1]),
                generations=self.generations,
                max_requests=s.requests,
                seed=s.seed,
                clock=self.clock,
                on_offer=self._on_offer,
                on_event=on_event,
            )
            for number, profile in enumerate(s.drafters, 1)
        ]
        for number in range(1, s.requests + 1):
            # Beyond the last token: what a tree may still reach.
            length = s.tokens + 2 * s.limits.max_depth
            seed = s.seed * 1_000_003 + number
            self.texts[number] = TracedText(s.trace, length, seed)
            for profile, texts in zip(s.drafters, drafted, strict=True):
                if profile.trace is not None:
                    texts[number] = TracedText(profile.trace, length, seed)
            self.servings[number] = Serving(
                self.env,
                number,
                s,
                self.texts[number],
                clock=self.clock,
                estimates=self.estimates,
                target=self.target,
                home=self.home,
                home_proposer=TracedProposer(s.trace.vocab_size, self.texts),
                on_commit=self._on_commit,
                on_finish=self._on_finish,
                on_event=on_event,
            )

    def run(self) -> list[RequestRun]:
        self._greet()
        for number, serving in self.servings.items():
            self.generations[number] = serving.generation
            for remote in self.remotes:
                remote.update(serving.generation)
            serving.start()
        while self._left:  # heartbeats would go on for ever
            self.env.step()
        return [serving.run() for serving in self.servings.values()]

    def _greet(self) -> None:
        """Requests begin when drafters have dialled in: they were there before."""
        while self.env.now < GREETING_MS and not all(r.session.ready for r in self.remotes):
            self.env.step()

    def restart(self) -> None:
        """Another process in the verifier's place: drafters have to dial again.

        It knows nothing of before but the texts, which it is asked to go on with.
        """
        for remote in self.remotes:
            if remote.session.ready:
                remote.disconnect()
        self.estimates = Estimates()
        for number in list(self.generations):
            serving = self.servings[number]
            serving.restart(self.estimates)
            self.generations[number] = serving.generation

    def _texts_of(self, trace: Trace | None) -> dict[int, TracedText]:
        """What a drafter's model is played back from; its own trace is of the target's texts."""
        if trace is None:
            return self.texts
        if not trace.same_texts(self.scenario.trace):
            raise ValueError("a drafter's trace: expected the texts of the scenario's trace")
        return {}

    def _on_offer(self, request: int) -> None:
        self.servings[request].poke()

    def _on_commit(self, generation: Generation) -> None:
        if not generation.done:
            for remote in self.remotes:
                remote.update(generation)

    def _on_finish(self, request: int) -> None:
        self._left -= 1
        self.generations.pop(request, None)
        for remote in self.remotes:
            remote.close(request)
