"""Remote: a drafter elsewhere in virtual time, and its link to the verifier."""

from collections.abc import Callable, Generator
from functools import partial
from random import Random
from typing import Any, Protocol

import simpy

from drafter.connection import Connection
from drafter.growth import GrowthShape
from drafter.session import Limits, Session
from wanspec_kernels.simulation.link import Carried, OneWay
from wanspec_kernels.simulation.scenario import DrafterProfile
from wanspec_kernels.simulation.traced import TracedProposer
from wanspec_kernels.wire import Hello

VOCABULARY = bytes(32)


class NewSession(Protocol):
    """Makes a drafter's state machine: `Session`, or one of its kind that is told to misbehave."""

    def __call__(self, model: TracedProposer, *, limits: Limits, shape: GrowthShape) -> Session: ...


class Remote:
    """The drafter's end of a connection, which it dials; every frame is carried as bytes.

    `hear` gets each frame that arrives at the verifier, and `gone` is called when the connection
    breaks: the verifier sees that at once. To the verifier each connection is another peer.
    """

    def __init__(
        self,
        env: simpy.Environment,
        number: int,
        profile: DrafterProfile,
        proposer: TracedProposer,
        *,
        max_requests: int,
        seed: int,
        new_session: NewSession,
        hear: Callable[["Remote", bytes], None],
        gone: Callable[["Remote"], None],
    ) -> None:
        self.key, self.profile = f"drafter {number}", profile
        self.num_dialled = 0
        link, begin = profile.link, Random(f"{seed} {number}").random()
        self.up = OneWay(link, f"{seed} {number} up", link.up_ms, begin)
        self.down = OneWay(link, f"{seed} {number} down", link.down_ms, begin)
        self.drafter = new_session(
            proposer, limits=Limits(max_requests, profile.max_nodes), shape=profile.shape
        )
        self.busy_ms = 0.0
        self.num_rounds = 0  # of the drafter's loop
        self._env, self._proposer = env, proposer
        self._max_requests = max_requests
        self._hear, self._gone = hear, gone
        self._carried: dict[Carried, tuple[simpy.Event, Callable[[], None]]] = {}
        self._inbox: list[bytes] = []
        self._connection: Connection | None = None  # what earlier ones carried is lost
        self._stopped_until_ms = 0.0
        self._wake = env.event()
        env.process(self._draft())

    @property
    def peer(self) -> bytes:
        return f"{self.key}, connection {self.num_dialled}".encode()

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    def send(self, data: bytes) -> None:
        """The verifier's frame, to arrive here."""
        self._carry(self.down, data, self._receive)

    def disconnect(self) -> None:
        """The connection breaks or the drafter dies: what is under way is lost."""
        if self._connection is not None:
            self._connection = None
            self._carried.clear()
            self._inbox.clear()
            self.drafter.reset()
            self._gone(self)

    def reconnect(self) -> None:
        """Dial again."""
        self.disconnect()
        self._dial()

    def stop(self, until_ms: float) -> None:
        """The drafter's process stands still, its connection stays."""
        self._stopped_until_ms = until_ms

    def limit(self, way: OneWay, bandwidth_mbit: float | None) -> None:
        """Another bandwidth, also for what waits in the link."""
        for carried in way.limit(bandwidth_mbit, self._env.now):
            if carried in self._carried:
                self._await(carried, self._carried[carried][1])

    def _dial(self) -> None:
        self.num_dialled += 1
        hello = Hello(
            VOCABULARY,
            self.key,
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
                self._carry(self.up, frame.data, partial(self._hear, self))
            if connection.lost is not None or connection.refused is not None:
                self.disconnect()
            elif not connection.wants_step:
                now_us = self._now_us()
                wait_us = max(1, connection.wake_at_us(now_us) - now_us)
                yield self._wake | self._env.timeout(wait_us / 1000)
            else:
                proposer = self._proposer
                rows, context = proposer.rows, proposer.context
                connection.step()
                rows, context = proposer.rows - rows, proposer.context - context
                if rows:
                    took_ms = self.profile.machine.time_ms(rows, context)
                    self.busy_ms += took_ms
                    yield self._env.timeout(took_ms)

    def _now_us(self) -> int:
        return int(self._env.now * 1000)

    def _wake_up(self) -> None:
        if not self._wake.triggered:
            self._wake.succeed()

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
