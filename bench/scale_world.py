"""Regions with daily load, targets' slots and drafters' seats: requests in virtual time.

A level above `wanspec_kernels.simulation`: a request is not played token by token but holds a slot
at the target for so many ms a token, which the detailed simulator tabulated by the drafter's round
trip. An event is a request that arrives, ends or loses its drafter; half a million take seconds.
"""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

HOURS = 24.0
PEAK_HOUR = 15.0  # local
SWING = 0.6  # of the mean load, up and down over a day
IDLE_AT_PEAK, IDLE_AT_NIGHT = 0.2, 0.9  # share of a region's drafters that are lent
EARTH_KM = 6371.0
KM_PER_MS = 200.0  # light in glass
DETOUR = 1.4  # of cables, over the great circle
LOCAL_RTT_MS = 4.0  # within a region; and added to every other


@dataclass(frozen=True, slots=True)
class Region:
    name: str
    latitude: float
    longitude: float
    weight: float  # of the world's requests

    def load(self, day: float) -> float:
        """Over its mean, at this share of a day in UTC."""
        local = HOURS * day + self.longitude / 15.0
        return 1.0 + SWING * math.cos(2 * math.pi * (local - PEAK_HOUR) / HOURS)

    def idle(self, day: float, *, steady: bool = False) -> float:
        """Share of its drafters that are lent: the fewer, the more its own people ask."""
        if steady:
            return (IDLE_AT_NIGHT + IDLE_AT_PEAK) / 2
        busy = (self.load(day) - (1 - SWING)) / (2 * SWING)
        return IDLE_AT_NIGHT + (IDLE_AT_PEAK - IDLE_AT_NIGHT) * busy


REGIONS = (
    Region("us-east", 39.0, -77.5, 0.25),  # the hot one
    Region("us-central", 41.3, -95.9, 0.08),
    Region("us-west", 45.6, -121.2, 0.10),
    Region("brazil", -23.5, -46.6, 0.06),
    Region("ireland", 53.3, -6.3, 0.10),
    Region("germany", 50.1, 8.7, 0.12),
    Region("india", 19.1, 72.9, 0.10),
    Region("singapore", 1.3, 103.8, 0.06),
    Region("japan", 35.7, 139.7, 0.09),
    Region("australia", -33.9, 151.2, 0.04),
)
HOT = 0


def round_trip_ms(a: Region, b: Region) -> float:
    """By the great circle, glass, and a detour."""
    if a == b:
        return LOCAL_RTT_MS
    lat_a, lat_b = math.radians(a.latitude), math.radians(b.latitude)
    apart = math.radians(a.longitude - b.longitude)
    cosine = math.sin(lat_a) * math.sin(lat_b) + math.cos(lat_a) * math.cos(lat_b) * math.cos(apart)
    return LOCAL_RTT_MS + 2 * DETOUR * EARTH_KM * math.acos(min(1.0, cosine)) / KM_PER_MS


@dataclass(frozen=True, slots=True)
class Cost:
    """Slot time of a token, by the drafter's round trip; all from the detailed simulator."""

    home_ms: float  # with draft passes at home
    round_trips_ms: tuple[float, ...]
    remote_ms: tuple[float, ...]
    target_ms: float = math.inf  # without any draft: nobody is ever slower

    def token_ms(self, rtt_ms: float | None) -> float:
        if rtt_ms is None:
            return self.home_ms
        return float(np.interp(rtt_ms, self.round_trips_ms, self.remote_ms))


@dataclass(frozen=True, slots=True)
class Settings:
    cost: Cost
    in_flight: int = 10_000  # in the world, on the mean of the day, if drafts are made at home
    drafters: int = 1_000  # in the world, as many in each region
    seats: int = 0  # requests that a drafter serves at a time; 0: drafts are made at home
    steady: bool = False  # drafters are lent alike at all hours
    spare: float = 0.15  # of a region's slots at its peak, drafts made at home
    hot_load: float = 1.0  # of the hot region's peak, over its slots, drafts made at home
    tokens: float = 1_000.0  # of a request, on the mean; exponential
    services: float = 20.0  # a day, in mean requests' times: days are shortened
    steps: int = 96  # a day, at which drafters come and leave
    seed: int = 0


@dataclass(slots=True)
class _Request:
    region: int
    arrived: float
    left: float  # tokens
    tokens: float
    drafter: int | None = None  # region of
    since: float = 0.0
    token_ms: float = 0.0
    version: int = 0
    started: float = -1.0


@dataclass(slots=True)
class Outcome:
    """What happened at the hot region, and what of drafters the world used."""

    requests: int = 0
    waits_ms: list[float] = field(default_factory=list)  # hot region, for a slot
    token_ms: list[float] = field(default_factory=list)  # hot region, wait included
    remote_tokens: float = 0.0  # hot region
    tokens: float = 0.0
    remote_rtt_ms: float = 0.0  # token-weighted sum
    evictions: int = 0
    busiest_slots: float = 0.0  # hot region, mean share held over the busiest hour
    seats_full: float = 0.0  # share of the day in which no lent drafter had a seat left
    service_ms: float = 0.0  # a mean request's, drafts made at home


class World:
    """One day, in ms from 0; the half day before it fills the slots and is not counted."""

    def __init__(self, settings: Settings, regions: Sequence[Region] = REGIONS) -> None:
        s = self.settings = settings
        self.regions = regions
        self.service_ms = s.tokens * s.cost.home_ms
        self.day_ms = s.services * self.service_ms
        self.rtt_ms = [[round_trip_ms(a, b) for b in regions] for a in regions]
        # Where a drafter saves nothing, home is asked.
        self.useful = [
            sorted(
                (q for q in range(len(regions)) if s.cost.token_ms(row[q]) < s.cost.home_ms),
                key=row.__getitem__,
            )
            for row in self.rtt_ms
        ]
        self.slots = [self._slots(number) for number in range(len(regions))]
        self.busy = [0] * len(regions)
        self.queues: list[deque[_Request]] = [deque() for _ in regions]
        self.seats = [0] * len(regions)
        self.users: list[dict[int, _Request]] = [{} for _ in regions]
        self.outcome = Outcome(service_ms=self.service_ms)
        self._random = Random(s.seed)
        self._events: list[tuple[float, int, int, object]] = []
        self._number = 0
        self._held: list[tuple[float, int]] = []  # slots of the hot region, at each step

    def _mean_in_flight(self, number: int) -> float:
        scale = self.settings.hot_load if number == HOT else 1.0
        return scale * self.settings.in_flight * self.regions[number].weight

    def _slots(self, number: int) -> int:
        mean = self.settings.in_flight * self.regions[number].weight
        spare = 0.0 if number == HOT else self.settings.spare
        return max(1, math.ceil(mean * (1 + SWING) * (1 + spare)))

    def run(self) -> Outcome:
        s = self.settings
        for number in range(len(self.regions)):
            self._arrive_next(number, -self.day_ms / 2)
        for step in range(-s.steps // 2, s.steps + 1):
            self._push(step * self.day_ms / s.steps, _STEP, step)
        while self._events:
            now, _, kind, payload = heapq.heappop(self._events)
            if now >= self.day_ms:
                break
            if kind == _ARRIVAL:
                assert isinstance(payload, int)
                self._on_arrival(payload, now)
            elif kind == _END:
                request, version = payload  # type: ignore[misc]
                if request.version == version:
                    self._on_end(request, now)
            else:
                self._on_step(now)
        self._summarise()
        return self.outcome

    def _push(self, at: float, kind: int, payload: object) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, self._number, kind, payload))

    def _arrive_next(self, number: int, now: float) -> None:
        """Thinning: candidates at the peak's rate, kept as the hour has it."""
        peak_rate = self._mean_in_flight(number) / self.service_ms * (1 + SWING)
        region, at = self.regions[number], now
        while True:
            at += self._random.expovariate(peak_rate)
            if self._random.random() * (1 + SWING) < region.load(at / self.day_ms):
                break
        if at < self.day_ms:
            self._push(at, _ARRIVAL, number)

    def _on_arrival(self, number: int, now: float) -> None:
        self._arrive_next(number, now)
        tokens = self._random.expovariate(1 / self.settings.tokens)
        request = _Request(number, now, tokens, tokens)
        if self.busy[number] < self.slots[number]:
            self._start(request, now)
        else:
            self.queues[number].append(request)

    def _start(self, request: _Request, now: float) -> None:
        self.busy[request.region] += 1
        request.started = now
        self._assign(request, now)

    def _assign(self, request: _Request, now: float) -> None:
        """To the nearest lent drafter with a seat, or home; and when it will end so."""
        request.drafter, rtt = None, None
        for q in self.useful[request.region]:
            if len(self.users[q]) < self.seats[q]:
                request.drafter, rtt = q, self.rtt_ms[request.region][q]
                self.users[q][id(request)] = request
                break
        request.since, request.token_ms = now, self.settings.cost.token_ms(rtt)
        request.version += 1
        ends = now + request.left * request.token_ms
        self._push(ends, _END, (request, request.version))

    def _account(self, request: _Request, now: float) -> None:
        done = (now - request.since) / request.token_ms
        request.left = max(0.0, request.left - done)
        if request.region == HOT and now >= 0:
            self.outcome.tokens += done
            if request.drafter is not None:
                self.outcome.remote_tokens += done
                self.outcome.remote_rtt_ms += done * self.rtt_ms[HOT][request.drafter]

    def _release(self, request: _Request) -> None:
        if request.drafter is not None:
            del self.users[request.drafter][id(request)]

    def _on_end(self, request: _Request, now: float) -> None:
        self._account(request, now)
        self._release(request)
        number = request.region
        self.busy[number] -= 1
        if request.arrived >= 0:
            self.outcome.requests += 1
            if number == HOT:
                self.outcome.waits_ms.append(request.started - request.arrived)
                self.outcome.token_ms.append((now - request.arrived) / request.tokens)
        if self.queues[number]:
            self._start(self.queues[number].popleft(), now)

    def _on_step(self, now: float) -> None:
        s, day = self.settings, now / self.day_ms
        each = s.drafters // len(self.regions)
        for q, region in enumerate(self.regions):
            self.seats[q] = s.seats * int(each * region.idle(day, steady=s.steady))
            users = list(self.users[q].values())
            for request in users[self.seats[q] :]:  # the last to come lose theirs
                self._account(request, now)
                self._release(request)
                self._assign(request, now)
                self.outcome.evictions += now >= 0
        if now >= 0:
            self._held.append((now, self.busy[HOT]))
            full = all(len(self.users[q]) >= self.seats[q] for q in self.useful[HOT])
            self.outcome.seats_full += full / s.steps

    def _summarise(self) -> None:
        """What still waits at the end of the day counts as having waited so long."""
        hour = max(1, self.settings.steps // 24)
        held = [busy for _, busy in self._held]
        means = [sum(held[i : i + hour]) / hour for i in range(len(held) - hour + 1)]
        self.outcome.busiest_slots = max(means) / self.slots[HOT]
        waiting = [self.day_ms - r.arrived for r in self.queues[HOT] if r.arrived >= 0]
        self.outcome.waits_ms += waiting


_ARRIVAL, _END, _STEP = range(3)
