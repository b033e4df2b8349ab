"""Accelerators and clocks in virtual time."""

from collections.abc import Callable

import simpy


class Clock:
    """The verifier's: virtual time, and what it has jumped ahead of it, in ms."""

    def __init__(self, env: simpy.Environment) -> None:
        self.ahead_ms = 0.0
        self._env = env

    @property
    def now_ms(self) -> float:
        return self._env.now + self.ahead_ms


class Accelerator:
    """One pass at a time, in the order in which they were asked for."""

    def __init__(self, env: simpy.Environment) -> None:
        self.busy_ms = 0.0
        self._env = env
        self._free_ms = 0.0

    def run(
        self, ms: float, ended: Callable[[], None], began: Callable[[], None] | None = None
    ) -> None:
        """A pass of so many ms: `began` is called when it begins, `ended` when it has ended."""
        begins_ms = max(self._env.now, self._free_ms)
        self._free_ms = begins_ms + ms
        self.busy_ms += ms
        if began is not None:
            if begins_ms > self._env.now:
                self._at(begins_ms, began)
            else:
                began()
        self._at(self._free_ms, ended)

    def restart(self) -> None:
        """What was asked for is forgotten, and it is free at once."""
        self._free_ms = self._env.now

    def _at(self, ms: float, then: Callable[[], None]) -> None:
        timeout = self._env.timeout(ms - self._env.now)
        assert timeout.callbacks is not None
        timeout.callbacks.append(lambda _: then())
