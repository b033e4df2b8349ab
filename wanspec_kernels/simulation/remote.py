"""Remote: a drafter elsewhere in virtual time, with its link and the verifier's session for it."""

from collections.abc import Callable, Generator, Iterable
from functools import partial
from random import Random
from typing import Any

import simpy

from drafter.connection import Connection
from drafter.session import Limits, Session
from wanspec_kernels.drafts import session as verifier
from wanspec_kernels.drafts.pool import Kind
from wanspec_kernels.engine.generation import Generation
from wanspec_kernels.events import Offered
from wanspec_kernels.simulation.link import Carried, OneWay
from wanspec_kernels.simulation.machine import Clock
from wanspec_kernels.simulation.scenario import DrafterProfile
from wanspec_kernels.simulation.traced import TracedProposer
from wanspec_kernels.wire import Draft, Hello, Message, Open, ProtocolError, decode_frame, frames_of

VOCABULARY = bytes(32)
HEARTBEAT_MS = 250.0


class Remote:
    """Both ends of a connection, which the drafter dials; every frame is carried as bytes."""

    def __init__(
        self,
        env: simpy.Environment,
        source: int,
        profile: DrafterProfile,
        proposer: TracedProposer,
        *,
        generations: dict[int, Generation],
        max_requests: int,
        seed: int,
        clock: Clock,
        on_offer: Callable[[int], None],
        on_event: Callable[[Offered], None] = lambda event: None,
    ) -> None:
        self.source, self.profile = source, profile
        link, begin = profile.link, Random(f"{seed} {source}").random()
        self.up = OneWay(link, f"{seed} {source} up", link.up_ms, begin)
        self.down = OneWay(link, f"{seed} {source} down", link.down_ms, begin)
        self.drafter = Session(
            proposer, limits=Limits(max_requests, profile.max_nodes), shape=profile.shape
        )
        self.session = self._new_session(clock)
        self.busy_ms = 0.0
        self.num_rounds = 0  # of the drafter's loop
        self._env, self._clock = env, clock
        self._max_requests = max_requests
        self._generations = generations
        self._on_offer, self._on_event = on_offer, on_event
        self._carried: dict[Carried, tuple[simpy.Event, Callable[[], None]]] = {}
        self._inbox: list[bytes] = []
        self._connection: Connection | None = None  # what earlier ones carried is lost
        self._stopped_until_ms = 0.0
        self._wake = env.event()
        env.process(self._draft())
        env.process(self._beat())

    def update(self, generation: Generation) -> None:
        """Bring the drafter up to a request's committed text."""
        now = self._clock.now_ms
        for message in self.session.update(generation, now):
            self._send(self.down, [message], self._receive)
            self.session.sent(message, now)
            if isinstance(message, Open):
                generation.enrol(self.source, self.session.round_trip_ms)

    def close(self, request: int) -> None:
        self._send(self.down, self.session.close_request(request, "finished"), self._receive)

    def disconnect(self) -> None:
        """The connection breaks or the drafter dies: what is under way is lost."""
        self._connection = None
        self._carried.clear()
        self._inbox.clear()
        self.drafter.reset()
        self.session.end("disconnected")
        for generation in self._generations.values():
            generation.retire(self.source)

    def reconnect(self, source: int) -> None:
        """Dial again; to the verifier it is a new source."""
        self._carried.clear()
        self._inbox.clear()
        self.source = source
        self.session = self._new_session(self._clock)
        self._dial()

    def stop(self, until_ms: float) -> None:
        """The drafter's process stands still, its connection stays."""
        self._stopped_until_ms = until_ms

    def limit(self, way: OneWay, bandwidth_mbit: float | None) -> None:
        """Another bandwidth, also for what waits in the link."""
        for carried in way.limit(bandwidth_mbit, self._env.now):
            if carried in self._carried:
                self._await(carried, self._carried[carried][1])

    def _new_session(self, clock: Clock) -> verifier.Session:
        return verifier.Session(
            self.source, str(self.source), vocabulary=VOCABULARY, now=clock.now_ms
        )

    def _dial(self) -> None:
        hello = Hello(
            VOCABULARY,
            f"drafter {self.source}",
            self._max_requests,
            self.profile.max_nodes,
            self._now_us(),
        )
        self._connection = Connection(self.drafter, hello)
        self._wake_up()

    def _draft(self) -> Generator[simpy.Event, Any, None]:
        """One pass after another; what comes in the meantime is read between them."""
        self._dial()
        while True:
            if self._env.now < self._stopped_until_ms:
                yield self._env.timeout(self._stopped_until_ms - self._env.now)
                continue
            self.num_rounds += 1
            self._wake = self._env.event()
            connection = self._connection
            if connection is None:
                yield self._wake
                continue
            inbox, self._inbox = self._inbox, []
            for data in inbox:
                connection.receive(data, self._now_us())
            for frame in connection.frames_to_send(self._now_us()):
                self._carry(self.up, frame.data, self._hear)
            if connection.lost is not None or connection.refused is not None:
                self.disconnect()
            elif not connection.wants_step:
                now_us = self._now_us()
                wait_us = max(1, connection.wake_at_us(now_us) - now_us)
                yield self._wake | self._env.timeout(wait_us / 1000)
            else:
                before = self.drafter.counters.num_tokens
                connection.step()
                rows = self.drafter.counters.num_tokens - before
                if rows:
                    took_ms = self.profile.machine.time_ms(rows)
                    self.busy_ms += took_ms
                    yield self._env.timeout(took_ms)

    def _now_us(self) -> int:
        return int(self._env.now * 1000)

    def _wake_up(self) -> None:
        if not self._wake.triggered:
            self._wake.succeed()

    def _beat(self) -> Generator[simpy.Event, Any, None]:
        while True:
            was_ready = self.session.ready
            self._send(self.down, self.session.tick(self._clock.now_ms), self._receive)
            if was_ready and not self.session.ready:  # silent for too long
                self.disconnect()
            for generation in list(self._generations.values()):
                self.update(generation)
            yield self._env.timeout(HEARTBEAT_MS)

    def _send(
        self, way: OneWay, messages: Iterable[Message], deliver: Callable[[bytes], None]
    ) -> None:
        for frame in frames_of(messages):
            self._carry(way, frame.data, deliver)

    def _carry(self, way: OneWay, data: bytes, deliver: Callable[[bytes], None]) -> None:
        self._await(way.send(self._env.now, len(data)), partial(deliver, data))

    def _await(self, carried: Carried, then: Callable[[], None]) -> None:
        def arrives(event: simpy.Event) -> None:
            # Not if it was lost with its connection, or is awaited at another time by now.
            if carried in self._carried and self._carried[carried][0] is event:
                del self._carried[carried]
                then()

        arrival = self._env.timeout(max(0.0, carried.arrival_ms - self._env.now))
        self._carried[carried] = (arrival, then)
        assert arrival.callbacks is not None
        arrival.callbacks.append(arrives)

    def _receive(self, data: bytes) -> None:
        """At the drafter."""
        self._inbox.append(data)
        self._wake_up()

    def _hear(self, data: bytes) -> None:
        """At the verifier."""
        for message in decode_frame(data):
            assert not isinstance(message, ProtocolError)
            was_ready = self.session.ready
            reaction = self.session.on_message(message, self._clock.now_ms)
            self._send(self.down, reaction.send, self._receive)
            if self.session.ready and not was_ready:
                self._send(self.down, self.session.tick(self._clock.now_ms), self._receive)
                for generation in self._generations.values():
                    self.update(generation)
            if reaction.draft is not None:
                self._offer(reaction.draft)

    def _offer(self, draft: Draft) -> None:
        generation = self._generations.get(draft.request)
        if generation is None:
            return
        outcome = generation.offer(self.source, draft, self._clock.now_ms)
        self._on_event(Offered(self.source, draft, outcome))
        if outcome.kind is Kind.INVALID:
            self._send(self.down, self.session.quarantine(outcome.reason), self._receive)
            generation.retire(self.source)
        self._on_offer(draft.request)
