"""Faults in virtual time: what goes wrong between a verifier and its drafters, at random."""

from collections import Counter
from collections.abc import Callable, Generator
from random import Random
from typing import Any

import simpy

from wanspec_kernels.simulation.remote import Remote
from wanspec_kernels.simulation.world import World

KINDS = ("kill", "kill", "stop", "stall", "narrow", "jump", "restart", "join", "join")
GAPS_MS = (1.0, 10.0, 60.0)  # between two faults, at most
STALLS_MS = (20.0, 2000.0, 5000.0)  # the last outlasts three heartbeats
NARROW_MBIT = (0.02, 0.5, None)
JUMPS_MS = (5.0, 1500.0, 3.6e6)  # of the verifier's clock, which never goes back
REDIAL_MS = 400.0  # within which a drafter that has lost its verifier dials again


class Faults:
    """Breaks something every now and then; the same world and seed break the same way."""

    def __init__(self, world: World, seed: int, kinds: tuple[str, ...] = KINDS) -> None:
        self.world = world
        self.counts: Counter[str] = Counter()
        self._kinds = kinds
        self._random = Random(f"faults {seed}")
        world.env.process(self._process())

    def _process(self) -> Generator[simpy.Event, Any, None]:
        env, rng = self.world.env, self._random
        while True:
            yield env.timeout(rng.choice(GAPS_MS) * rng.random())
            remote, kind = rng.choice(self.world.remotes), rng.choice(self._kinds)
            self.counts[kind] += 1
            match kind:
                case "kill":
                    remote.disconnect()
                case "stop":
                    remote.stop(env.now + 300.0 * rng.random())
                case "stall":
                    for way in (remote.up, remote.down):
                        way.stall(env.now + rng.choice(STALLS_MS))
                case "narrow":
                    for way in (remote.up, remote.down):
                        remote.limit(way, rng.choice(NARROW_MBIT))
                case "jump":
                    self.world.clock.ahead_ms += rng.choice(JUMPS_MS)
                case "restart":
                    self.world.restart()
                    for each in self.world.remotes:
                        self._after(REDIAL_MS * rng.random(), each, self._redial)
                case "join":
                    self._redial(remote)

    def _redial(self, remote: Remote) -> None:
        if not remote.is_connected:
            remote.reconnect()

    def _after(self, ms: float, remote: Remote, then: Callable[[Remote], None]) -> None:
        timeout = self.world.env.timeout(ms)
        assert timeout.callbacks is not None
        timeout.callbacks.append(lambda _: then(remote))
