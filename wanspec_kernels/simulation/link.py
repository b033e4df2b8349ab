"""A link in virtual time: delay, jitter and bandwidth as the emulator has them, loss and stalls."""

from collections import deque
from dataclasses import dataclass
from random import Random

from wanspec_kernels.link_emulator import Direction, Segment


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


@dataclass(slots=True, eq=False)
class Carried:
    """A message on its way."""

    segment: Segment
    later_ms: float  # than the segment's: what was measured, lost and sent again
    not_before_ms: float
    arrival_ms: float = 0.0


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
        self._stalled_until_ms = 0.0
        self._last_ms = 0.0
        self._queue: deque[Carried] = deque()  # and in it still, when the bandwidth changes
        self._left_ms = 0.0  # the last arrival of those that have left it
        self._measured_ms = measured_ms
        self._begin = int(begin * len(measured_ms))

    def stall(self, until_ms: float) -> None:
        """Nothing sent from now on arrives before `until_ms`."""
        self._stalled_until_ms = max(self._stalled_until_ms, until_ms)

    def limit(self, bandwidth_mbit: float | None, now_ms: float) -> list[Carried]:
        """Another bandwidth for what is sent from now on, and what waits; None: no limit.

        Returns what waits, which now arrives at another time.
        """
        self._pass_on(now_ms)
        self._direction.limit(bandwidth_mbit, now_ms / 1e3)
        self._last_ms = self._left_ms
        for carried in self._queue:
            self._arrive(carried)
        return list(self._queue)

    def send(self, now_ms: float, num_bytes: int) -> Carried:
        self.num_bytes += num_bytes
        self.num_messages += 1
        self._pass_on(now_ms)
        p, later_ms = self.profile, 0.0
        if self._measured_ms:
            index = self._begin + int(now_ms / p.measured_every_ms)
            later_ms += self._measured_ms[index % len(self._measured_ms)]
        while p.loss and self._random.random() < p.loss:
            later_ms += p.retransmit_ms + p.round_trip_ms
        segment = self._direction.send(now_ms / 1e3, num_bytes)
        carried = Carried(segment, later_ms, self._stalled_until_ms)
        self._queue.append(carried)
        self._arrive(carried)
        return carried

    def _pass_on(self, now_ms: float) -> None:
        while self._queue and 1e3 * self._queue[0].segment.leaves <= now_ms:
            self._left_ms = self._queue.popleft().arrival_ms

    def _arrive(self, carried: Carried) -> None:
        arrives = 1e3 * carried.segment.arrival + carried.later_ms
        p = self.profile
        if p.stall_ms:
            into_ms = arrives % p.stall_every_ms
            first = p.stall_every_ms - p.stall_ms  # a period ends with its stall
            if into_ms >= first:
                arrives += p.stall_every_ms - into_ms
        self._last_ms = max(self._last_ms, carried.not_before_ms, arrives)
        carried.arrival_ms = self._last_ms
