"""Connection: greeting and liveness, by a clock handed in. No socket."""

from __future__ import annotations

import logging
from random import Random

from drafter.flow import Flow
from drafter.session import Session
from wanspec_kernels.wire import (
    MAX_MESSAGE_BYTES,
    Error,
    ErrorCode,
    Hello,
    Message,
    Ping,
    Pong,
    Welcome,
)

log = logging.getLogger(__name__)

# Another attempt cannot change these.
FINAL_REFUSALS = (ErrorCode.VOCABULARY, ErrorCode.VERSION, ErrorCode.SUPERSEDED)
# The verifier does not know us: restarted behind the same address, or it will not for now.
LOST = (ErrorCode.UNEXPECTED, ErrorCode.NOT_ENROLLED)
SILENT_HEARTBEATS = 3  # the peer may miss before it counts as gone
GREETING_TIMEOUT_US = 10_000_000


class Connection:
    """What is said around a `Session` on one connection, from HELLO on.

    After `lost` is set the connection is of no more use, and a new one may be tried; after
    `refused`, none should be.
    """

    def __init__(
        self,
        session: Session,
        hello: Hello,
        *,
        greeting_timeout_us: int = GREETING_TIMEOUT_US,
    ) -> None:
        session.reset()
        self.lost: str | None = None
        self.awaited = "no WELCOME"  # or what is missing before it, as far as the link knows
        self.refused: str | None = None
        self.welcome: Welcome | None = None
        self.round_trip_us = 0  # 0 = not known yet
        self.conversed = False  # a PING was answered: a verifier that only greets is no good one
        self.hello = hello
        self.flow = Flow(0, 0)
        self._session = session
        self._heard_us = hello.clock_us
        self._pinged_us = hello.clock_us
        self._greeting_timeout_us = greeting_timeout_us

    @property
    def max_message_bytes(self) -> int:
        return MAX_MESSAGE_BYTES if self.welcome is None else self.welcome.max_message_bytes

    @property
    def deadline_us(self) -> int:
        """When `tick` next has something to do, if nothing is heard until then."""
        return min(self._silent_us, self._ping_us)

    def on_message(self, message: Message, now_us: int) -> list[Message]:
        self._heard_us = now_us
        match message:
            case Welcome():
                return self._on_welcome(message, now_us)
            case Error(request=None):
                self._on_error(message)
                return []
            case Ping(clock_us=clock_us):
                return [Pong(clock_us, now_us)]
            case Pong(clock_us, peer_clock_us):
                self.conversed = True
                self._on_round_trip(now_us - clock_us)
                self.flow.answered(clock_us, peer_clock_us, now_us)
                return []
        if self.welcome is None:
            return [Error.of(ErrorCode.UNEXPECTED, "expected WELCOME first")]
        return self._session.on_message(message)

    def tick(self, now_us: int) -> list[Message]:
        """Notice silence; PING when it is time to."""
        if now_us >= self._silent_us:
            what = "heard nothing" if self.welcome else self.awaited
            self.lost = f"{what} for {(now_us - self._heard_us) / 1e6:.1f} s"
        elif now_us >= self._ping_us:
            self._pinged_us = now_us
            return [Ping(now_us, self.round_trip_us)]
        return []

    def marker(self, now_us: int) -> list[Message]:
        """The PING that says when the drafts sent so far have arrived, if it is time for one."""
        return [Ping(now_us, self.round_trip_us)] if self.flow.mark(now_us) else []

    @property
    def _silent_us(self) -> int:
        if self.welcome is None:
            return self._pinged_us + self._greeting_timeout_us
        return self._heard_us + SILENT_HEARTBEATS * self.welcome.heartbeat_ms * 1000

    @property
    def _ping_us(self) -> int:
        # Half a heartbeat: one that is late by its own travel time is still within the whole.
        wait = self._greeting_timeout_us
        if self.welcome is not None:
            wait = self.welcome.heartbeat_ms * 500
        return self._pinged_us + wait

    def _on_welcome(self, message: Welcome, now_us: int) -> list[Message]:
        if self.welcome is not None:
            self._session.reset()
        self.welcome = message
        self._pinged_us = now_us
        self._on_round_trip(now_us - message.clock_us)
        self.flow = Flow(self.round_trip_us, message.verifier_clock_us - message.clock_us)
        log.info("welcome: round trip %.1f ms", self.round_trip_us / 1000)
        return []

    def _on_error(self, message: Error) -> None:
        text = f"{message.code}: {message.message}"
        if message.code in FINAL_REFUSALS:
            self.refused = text
        elif self.welcome is None or message.code in LOST:
            self.lost = text
        else:
            log.warning("verifier: %s", text)

    def _on_round_trip(self, sample_us: int) -> None:
        if sample_us < 0:
            return  # no clock of ours
        if self.round_trip_us == 0:
            self.round_trip_us = sample_us
        else:
            self.round_trip_us += (sample_us - self.round_trip_us) // 8


class Backoff:
    """Waits between attempts: doubled each time, within bounds, and never in step with others'."""

    def __init__(
        self, *, first_ms: int = 200, most_ms: int = 30_000, random: Random | None = None
    ) -> None:
        self._first_ms, self._most_ms = first_ms, most_ms
        self._random = random or Random()
        self._next_ms = first_ms

    def wait_ms(self) -> int:
        wait = self._next_ms
        self._next_ms = min(2 * wait, self._most_ms)
        return round(wait * self._random.uniform(0.5, 1.0))

    def reset(self) -> None:
        self._next_ms = self._first_ms
