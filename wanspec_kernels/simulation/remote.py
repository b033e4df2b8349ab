"""Remote: a drafter elsewhere in virtual time, with its link and the verifier's session for it."""

from collections.abc import Callable, Generator, Iterable
from functools import partial
from random import Random
from typing import Any

import simpy

from drafter.flow import Flow
from drafter.session import Limits, Session
from wanspec_kernels.drafts import session as verifier
from wanspec_kernels.drafts.pool import Kind
from wanspec_kernels.engine.sequence import Sequence
from wanspec_kernels.simulation.link import Carried, OneWay
from wanspec_kernels.simulation.machine import Clock
from wanspec_kernels.simulation.scenario import DrafterProfile
from wanspec_kernels.simulation.traced import TracedProposer
from wanspec_kernels.wire import Draft, Hello, Message, Open, Ping, Pong, decode, encode

VOCABULARY = bytes(32)
HEARTBEAT_MS = 250.0


class Remote:
    """Both state machines of a connection; every message is encoded, carried and decoded."""

    def __init__(
        self,
        env: simpy.Environment,
        source: int,
        profile: DrafterProfile,
        proposer: TracedProposer,
        *,
        sequences: dict[int, Sequence],
        max_requests: int,
        seed: int,
        clock: Clock,
        on_offer: Callable[[int, Draft], None],
    ) -> None:
        self.source, self.profile = source, profile
        self._proposer = proposer
        link, begin = profile.link, Random(f"{seed} {source}").random()
        self.up = OneWay(link, f"{seed} {source} up", link.up_ms, begin)
        self.down = OneWay(link, f"{seed} {source} down", link.down_ms, begin)
        self.drafter = Session(
            proposer, limits=Limits(max_requests, profile.max_nodes), shape=profile.shape
        )
        self._hello = Hello(VOCABULARY, f"drafter {source}", max_requests, profile.max_nodes, 0)
        self.busy_ms = 0.0
        self._env, self._clock = env, clock
        self._random = Random(f"{seed} {source} greeting")
        self._greet()
        self._sequences = sequences
        self._on_offer = on_offer
        self._carried: dict[Carried, tuple[simpy.Event, Callable[[], None]]] = {}
        self._inbox: list[bytes] = []
        self._connection = 0  # messages of earlier ones are lost
        self._stopped_until_ms = 0.0
        self._wake = env.event()
        env.process(self._draft())
        env.process(self._beat())

    def update(self, sequence: Sequence) -> None:
        """Bring the drafter up to a request's committed text."""
        now = self._clock.now_ms
        for message in self.session.update(sequence, now):
            self._send(self.down, [message], self._receive)
            self.session.sent(message, now)
            if isinstance(message, Open):
                sequence.enrol(self.source, self.session.round_trip_ms)

    def close(self, request: int) -> None:
        self._send(self.down, self.session.close_request(request, "finished"), self._receive)

    def disconnect(self) -> None:
        """The connection breaks or the drafter dies: what is under way is lost."""
        self._connection += 1
        self._carried.clear()
        self._inbox.clear()
        self.drafter.reset()
        self.session.end("disconnected")
        for sequence in self._sequences.values():
            sequence.retire(self.source)

    def reconnect(self, source: int) -> None:
        """Dial again; to the verifier it is a new source."""
        self.source = source
        self._greet()
        for sequence in self._sequences.values():
            self.update(sequence)

    def stop(self, until_ms: float) -> None:
        """The drafter's process stands still, its connection stays."""
        self._stopped_until_ms = until_ms

    def limit(self, way: OneWay, bandwidth_mbit: float | None) -> None:
        """Another bandwidth, also for what waits in the link."""
        for carried in way.limit(bandwidth_mbit, self._env.now):
            if carried in self._carried:
                self._await(carried, self._carried[carried][1])

    def _greet(self) -> None:
        now = self._clock.now_ms
        self.session = verifier.Session(
            self.source, str(self.source), vocabulary=VOCABULARY, now=now
        )
        self.session.on_message(self._hello, now)
        # As WELCOME, which is not carried, would say: each way with a jitter of its own.
        link = self.profile.link
        up_ms, down_ms = (
            link.round_trip_ms / 2 + self._random.uniform(0.0, link.jitter_ms) for _ in range(2)
        )
        offset_ms = now - self._env.now
        self._flow = Flow(int(1000 * (up_ms + down_ms)), int(1000 * (up_ms + offset_ms)))

    def _draft(self) -> Generator[simpy.Event, Any, None]:
        """One pass after another; what comes in the meantime is read between them."""
        proposer = self._proposer
        while True:
            if self._env.now < self._stopped_until_ms:
                yield self._env.timeout(self._stopped_until_ms - self._env.now)
                continue
            inbox, self._inbox = self._inbox, []
            for data in inbox:
                self._send(self.up, self._answers(decode(data)), self._hear)
            self._send_drafts()
            if not self.drafter.busy:
                self._wake = self._env.event()
                yield self._wake | self._paced()
                continue
            rows, context, connection = proposer.rows, proposer.context, self._connection
            errors = self.drafter.step()
            rows, context = proposer.rows - rows, proposer.context - context
            if rows:
                took_ms = self.profile.machine.time_ms(rows, context)
                self.busy_ms += took_ms
                yield self._env.timeout(took_ms)
            if connection == self._connection:
                self._send(self.up, errors, self._hear)

    def _send_drafts(self) -> None:
        """As `drafter.link` does."""
        unsent, now_us = self.drafter.num_unsent, self._now_us()
        if not unsent:
            return
        for draft in self.drafter.drafts(self._flow.allowance(unsent, now_us)):
            self._flow.sent(len(encode(draft)), len(draft.token_ids), now_us)
            self._send(self.up, [draft], self._hear)
        if self._flow.mark(now_us):
            self._send(self.up, [Ping(now_us, 0)], self._hear)

    def _paced(self) -> simpy.Event:
        """When more may go, though nothing is heard."""
        unsent, now_us = self.drafter.num_unsent, self._now_us()
        if not unsent:
            return self._env.event()
        wait_us = max(1, self._flow.next_us(unsent, now_us) - now_us)
        return self._env.timeout(wait_us / 1000)

    def _answers(self, message: Message) -> list[Message]:
        match message:
            case Ping(clock_us):
                return [Pong(clock_us, self._now_us())]
            case Pong(clock_us, peer_clock_us):
                self._flow.answered(clock_us, peer_clock_us, self._now_us())
                return []
        return self.drafter.on_message(message)

    def _now_us(self) -> int:
        return int(self._env.now * 1000)

    def _beat(self) -> Generator[simpy.Event, Any, None]:
        while True:
            was_ready = self.session.ready
            self._send(self.down, self.session.tick(self._clock.now_ms), self._receive)
            if was_ready and not self.session.ready:  # silent for too long
                self.disconnect()
            for sequence in list(self._sequences.values()):
                self.update(sequence)
            yield self._env.timeout(HEARTBEAT_MS)

    def _send(
        self, way: OneWay, messages: Iterable[Message], deliver: Callable[[bytes], None]
    ) -> None:
        for message in messages:
            data = encode(message)
            carried = way.send(self._env.now, len(data))
            self._await(carried, partial(deliver, data))

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
        if not self._wake.triggered:
            self._wake.succeed()

    def _hear(self, data: bytes) -> None:
        """At the verifier."""
        reaction = self.session.on_message(decode(data), self._clock.now_ms)
        self._send(self.down, reaction.send, self._receive)
        if reaction.draft is not None:
            self._offer(reaction.draft)

    def _offer(self, draft: Draft) -> None:
        sequence = self._sequences.get(draft.request)
        if sequence is None:
            return
        outcome = sequence.offer(self.source, draft, self._clock.now_ms)
        if outcome.kind is Kind.INVALID:
            self._send(self.down, self.session.quarantine(outcome.reason), self._receive)
            sequence.retire(self.source)
        self._on_offer(self.source, draft)
