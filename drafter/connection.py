"""Connection: a drafter's end of one connection, with timers and pace; no socket, no clock."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from drafter.flow import Flow, FlowTimes
from drafter.session import Session
from wanspec_kernels.wire import (
    MAX_MESSAGE_BYTES,
    Draft,
    Error,
    ErrorCode,
    Frame,
    Hello,
    Message,
    Packer,
    Ping,
    Pong,
    ProtocolError,
    UnsupportedVersion,
    Welcome,
    decode_frame,
)

log = logging.getLogger(__name__)

# Another attempt cannot change these.
FINAL_REFUSALS = (ErrorCode.VOCABULARY, ErrorCode.VERSION, ErrorCode.SUPERSEDED)
# The verifier does not know us: restarted behind the same address, or it will not for now.
LOST = (ErrorCode.UNEXPECTED, ErrorCode.NOT_ENROLLED)
SILENT_HEARTBEATS = 3  # the peer may miss before it counts as gone
GREETING_TIMEOUT_US = 10_000_000


@dataclass
class ConnectionCounters:
    num_malformed: int = 0  # messages received
    num_unsendable: int = 0  # messages other than drafts: the queue was full
    num_too_large: int = 0  # messages that the peer would not have read


class Connection:
    """A `Session` on one connection, from HELLO on.

    Whoever drives it hands it what is received, sends what `frames_to_send` gives, calls `step`
    while `wants_step`, and comes back at `wake_at_us` at the latest. After `lost` is set the
    connection is of no more use, and a new one may be tried; after `refused`, none should be. While
    the driver can send nothing, it says so in `writable`: the model rests, and drafts wait where
    commits prune them.
    """

    def __init__(
        self,
        session: Session,
        hello: Hello,
        *,
        counters: ConnectionCounters | None = None,
        greeting_timeout_us: int = GREETING_TIMEOUT_US,
        flow_times: FlowTimes | None = None,
    ) -> None:
        session.reset()
        self.counters = counters or ConnectionCounters()
        self.lost: str | None = None
        self.awaited = "no WELCOME"  # or what is missing before it, as far as the driver knows
        self.refused: str | None = None
        self.writable = True
        self.welcome: Welcome | None = None
        self.round_trip_us = 0  # 0 = not known yet
        self.conversed = False  # a PING was answered: a verifier that only greets is no good one
        self.flow = Flow(0, 0, flow_times)
        self._flow_times = flow_times
        self._session = session
        self._outbox: list[Message] = [hello]  # all but drafts, which stay in the session
        self._heard_us = hello.clock_us
        self._pinged_us = hello.clock_us
        self._greeting_timeout_us = greeting_timeout_us

    @property
    def wants_step(self) -> bool:
        """Whether the model has something to do."""
        return self.writable and self._session.busy

    @property
    def waits_to_write(self) -> bool:
        """Whether there would be something to do, were anything taken."""
        return not self.writable and (self._session.busy or self._session.num_unsent > 0)

    def wake_at_us(self, now_us: int) -> int:
        """When there is something to do, if nothing is heard before."""
        if self._outbox or self.wants_step:
            return now_us
        at_us = min(self._silent_us, self._ping_us)
        unsent = self._session.num_unsent
        if unsent and self.writable:
            at_us = min(at_us, self.flow.next_us(unsent, now_us))
        return max(at_us, now_us)

    def receive(self, data: bytes, now_us: int) -> None:
        """A frame came, which may be anything at all."""
        try:
            messages = decode_frame(data)
        except ProtocolError as error:
            if isinstance(error, UnsupportedVersion) and self.welcome is None:
                self.refused = f"version: {error}"
            else:
                self.malformed(error)
            return
        for message in messages:
            if isinstance(message, ProtocolError):
                self.malformed(message)
            else:
                self._outbox += self._on_message(message, now_us)

    def malformed(self, error: ProtocolError) -> None:
        """Something came that is no message; the verifier is told why."""
        self.counters.num_malformed += 1
        log.warning("malformed message: %s", error)
        self._outbox.append(Error.of(ErrorCode.MALFORMED, error))

    def step(self) -> None:
        """One pass of the model."""
        self._outbox += self._session.step()

    def close(self, reason: str) -> None:
        """Say goodbye, with the next frames."""
        self._outbox += self._session.close_all(reason)

    def frames_to_send(self, now_us: int) -> list[Frame]:
        """What may go now: answers, a PING if one is due, and as many drafts as the link takes.

        What cannot be sent after all is told to `dropped`.
        """
        self._beat(now_us)
        if self.lost is not None:
            return []
        packer = Packer(self._max_bytes, self.flow.frame_bytes)
        for message in self._outbox:
            self._pack(packer, message)
        self._outbox.clear()
        unsent = self._session.num_unsent
        if unsent and self.writable:
            for draft in self._session.drafts(self.flow.allowance(unsent, now_us)):
                num_bytes = self._pack(packer, draft)
                if num_bytes:
                    self.flow.sent(num_bytes, len(draft.token_ids), now_us)
            if self.flow.mark(now_us):
                # Behind them: it is answered when they have arrived.
                self._pack(packer, Ping(now_us, self.round_trip_us))
        return packer.frames()

    def dropped(self, frame: Frame) -> None:
        """The frame could not be sent, and is lost."""
        for message in frame.messages:
            if isinstance(message, Draft):
                self._session.on_dropped(message)
            else:
                self.counters.num_unsendable += 1

    @property
    def _max_bytes(self) -> int:
        return MAX_MESSAGE_BYTES if self.welcome is None else self.welcome.max_message_bytes

    def _pack(self, packer: Packer, message: Message) -> int:
        num_bytes = packer.add(message)
        self.counters.num_too_large += not num_bytes
        return num_bytes

    def _on_message(self, message: Message, now_us: int) -> list[Message]:
        self._heard_us = now_us
        match message:
            case Welcome():
                self._on_welcome(message, now_us)
                return []
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

    def _beat(self, now_us: int) -> None:
        """Notice silence; PING when it is time to."""
        if now_us >= self._silent_us:
            what = "heard nothing" if self.welcome else self.awaited
            self.lost = f"{what} for {(now_us - self._heard_us) / 1e6:.1f} s"
        elif now_us >= self._ping_us:
            self._pinged_us = now_us
            self._outbox.append(Ping(now_us, self.round_trip_us))

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

    def _on_welcome(self, message: Welcome, now_us: int) -> None:
        if self.welcome is not None:
            self._session.reset()
        self.welcome = message
        self._pinged_us = now_us
        self._on_round_trip(now_us - message.clock_us)
        way_us = message.verifier_clock_us - message.clock_us
        self.flow = Flow(self.round_trip_us, way_us, self._flow_times)
        log.info("welcome: round trip %.1f ms", self.round_trip_us / 1000)

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
