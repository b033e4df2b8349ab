"""A link in virtual time: delay, jitter and bandwidth as the emulator has them, loss and stalls."""

from dataclasses import dataclass
from random import Random

from wanspec_kernels.link_emulator import Direction


@dataclass(frozen=True, slots=True)
class LinkProfile:
    round_trip_ms: float
    jitter_ms: float = 0.0  # each way, uniform in 0..jitter
    bandwidth_mbit: float | None = None
    loss: float = 0.0  # of a message; TCP sends it again, and all behind it waits for it
    retransmit_ms: float = 200.0  # and a round trip more
    stall_ms: float = 0.0  # nothing gets through for so long,
    stall_every_ms: float = 20_000.0  # so often
    # Delays above the least that were measured, one every `measured_every_ms`; played back in order
    # and round again, both ways from the same moment.
    up_ms: tuple[float, ...] = ()
    down_ms: tuple[float, ...] = ()
    measured_every_ms: float = 20.0


class OneWay:
    """When does a message sent now arrive? Messages do not overtake each other."""

    def __init__(
        self,
        profile: LinkProfile,
        seed: str,
        measured_ms: tuple[float, ...] = (),
        begin: float = 0.0,
    ) -> None:
        """`measured_ms` is played back from the share `begin` of it on."""
        self.profile = profile
        self.num_bytes = 0
        self.num_messages = 0
        self._random = Random(f"{seed} loss")
        self._direction = Direction(
            profile.round_trip_ms / 2, profile.jitter_ms, profile.bandwidth_mbit, seed
        )
        self._last_ms = 0.0
        self._measured_ms = measured_ms
        self._begin = int(begin * len(measured_ms))

    def stall(self, until_ms: float) -> None:
        """Nothing sent from now on arrives before `until_ms`."""
        self._last_ms = max(self._last_ms, until_ms)

    def limit(self, bandwidth_mbit: float | None) -> None:
        """Another bandwidth for what is sent from now on; None: no limit."""
        self._direction.limit(bandwidth_mbit)

    def arrival_ms(self, now_ms: float, num_bytes: int) -> float:
        self.num_bytes += num_bytes
        self.num_messages += 1
        arrives = 1e3 * self._direction.arrival(now_ms / 1e3, num_bytes)
        p = self.profile
        if self._measured_ms:
            index = self._begin + int(now_ms / p.measured_every_ms)
            arrives += self._measured_ms[index % len(self._measured_ms)]
        while p.loss and self._random.random() < p.loss:
            arrives += p.retransmit_ms + p.round_trip_ms
        if p.stall_ms:
            into_ms = arrives % p.stall_every_ms
            first = p.stall_every_ms - p.stall_ms  # a period ends with its stall
            if into_ms >= first:
                arrives += p.stall_every_ms - into_ms
        self._last_ms = max(self._last_ms, arrives)
        return self._last_ms
