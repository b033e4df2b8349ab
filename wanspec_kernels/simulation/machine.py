"""Machines and clocks in virtual time; what is ready when a machine falls free runs together."""

from collections.abc import Callable, Generator
from typing import Any

import simpy

from wanspec_kernels.simulation.scenario import Machine


class Clock:
    """The verifier's: virtual time, and what it has jumped ahead of it, in ms."""

    def __init__(self, env: simpy.Environment) -> None:
        self.ahead_ms = 0.0
        self._env = env

    @property
    def now_ms(self) -> float:
        return self._env.now + self.ahead_ms


class Batcher:
    """One machine and its queue. Jobs are (rows, what to do when the pass has ended).

    A pass takes what is ready. An idle machine gives `expected` jobs up to `gather_ms` to become
    so: who just misses a pass waits for all of it, and then misses the others again.
    """

    def __init__(
        self,
        env: simpy.Environment,
        machine: Machine,
        max_batch: int,
        *,
        gather_ms: float = 0.0,
        expected: Callable[[], int] = lambda: 0,
    ) -> None:
        self.busy_ms = 0.0
        self.passes = 0
        self._env, self._machine, self._max_batch = env, machine, max_batch
        self._gather_ms, self._expected = gather_ms, expected
        self._queue: list[tuple[int, Callable[[], None]]] = []
        self._running = False
        self._submitted = env.event()

    def submit(self, rows: int, then: Callable[[], None]) -> None:
        self._queue.append((rows, then))
        if not self._running:
            self._running = True
            self._env.process(self._run())
        elif not self._submitted.triggered:
            self._submitted.succeed()

    def _run(self) -> Generator[simpy.Event, Any, None]:
        # What else becomes ready at this very moment shares the pass.
        yield self._env.timeout(0)
        while self._queue:
            yield from self._gather()
            batch = self._queue[: self._max_batch]
            del self._queue[: self._max_batch]
            took_ms = self._machine.time_ms(sum(rows for rows, _ in batch))
            self.busy_ms += took_ms
            self.passes += 1
            yield self._env.timeout(took_ms)
            for _, then in batch:
                then()
        self._running = False

    def _gather(self) -> Generator[simpy.Event, Any, None]:
        ends_ms = self._env.now + self._gather_ms
        while len(self._queue) < min(self._max_batch, self._expected()) and self._env.now < ends_ms:
            self._submitted = self._env.event()
            yield self._submitted | self._env.timeout(ends_ms - self._env.now)
