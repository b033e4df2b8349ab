"""Exchange: the drafters' side of any engine. Messages and texts in, messages and drafts out."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from wanspec_kernels import events
from wanspec_kernels.drafts.admission import Admission, AdmissionConfig, Refusal
from wanspec_kernels.drafts.assignment import Seats, assign
from wanspec_kernels.drafts.drafted_text import MAX_SOURCE_NODES, DraftedText
from wanspec_kernels.drafts.keeping_up import KeepingUp
from wanspec_kernels.drafts.outcome import Kind
from wanspec_kernels.drafts.refusals import Refusals
from wanspec_kernels.drafts.session import Session, SessionConfig, State
from wanspec_kernels.drafts.sources import Sources
from wanspec_kernels.wire import (
    MAX_DEPTH,
    MAX_MESSAGE_BYTES,
    MAX_PLAIN_BYTES,
    MAX_PROMPT_TOKENS,
    Close,
    Draft,
    Error,
    ErrorCode,
    Hello,
    Message,
    Open,
    ProtocolError,
    UnsupportedVersion,
    decode_frame,
)
from wanspec_kernels.wire.frames import Frame, Packer
from wanspec_kernels.wire.sampling import Sampling

logger = logging.getLogger(__name__)

MOVES_MS = 1000.0  # between two moves of one request from drafter to drafter


@dataclass(frozen=True, slots=True)
class ExchangeConfig:
    session: SessionConfig = field(default_factory=SessionConfig)
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    max_sessions: int = 64


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A frame to send to a peer. If it cannot be sent, tell the exchange: `undelivered`."""

    peer: bytes
    frame: Frame


@dataclass(slots=True)
class _Asked:
    """A text that remotes are to draft for."""

    text: DraftedText
    sources: frozenset[int] = frozenset()  # who were chosen
    moved_ms: float = float("-inf")
    is_too_long: bool = False  # for an OPEN: who does not follow it is not asked


class Exchange:
    """Holds the drafters' sessions by peer, the texts by request, and who drafts for which.

    It knows neither socket nor engine. Whoever carries messages hands in what came (`receive`,
    after `admission` has let it pass) and sends what `to_send` gives, at every change and when
    `wake_at` says. An engine opens its requests, commits their texts, and finds the drafts in each
    text's pool. `now` is any clock in ms that does not go back. Nothing that a drafter sends
    raises, or costs anybody else anything.

    Args:
        vocabulary: the target's fingerprint.
        vocab_size: tokens of it.
        name_of: the name under which a key is enrolled.
    """

    def __init__(
        self,
        *,
        vocabulary: bytes,
        vocab_size: int,
        now: float,
        config: ExchangeConfig | None = None,
        sources: Sources | None = None,
        name_of: Callable[[str], str] = lambda key: key,
    ) -> None:
        self.config = config or ExchangeConfig()
        self.sources = sources or Sources()
        self.events = events.Events()
        self.texts: dict[int, DraftedText] = {}
        self.counters: Counter[str] = Counter()
        self.refusals = Refusals()
        self.admission = Admission(self.config.admission, now)
        self.name_of = name_of
        self._vocabulary, self._vocab_size = vocabulary, vocab_size
        self._sessions: dict[bytes, Session] = {}  # by peer; one a key
        self._peers: dict[int, bytes] = {}  # by source
        self._keeping_up: dict[int, KeepingUp] = {}  # by source
        self._numbers = count(1)
        self._asked: dict[int, _Asked] = {}  # in order of age
        self._stale: set[int] = set()  # requests of which drafters have to hear
        self._outbox: dict[bytes, list[Message]] = {}
        self._ticked_ms = now
        self._must_assign = False
        self._num_draws = 0  # open texts under `rejection`

    @property
    def sessions(self) -> list[Session]:
        """Of the drafters that were welcomed."""
        return list(self._sessions.values())

    def drafters_of(self, request: int) -> frozenset[int]:
        """The remotes that were chosen to draft for a request."""
        asked = self._asked.get(request)
        return frozenset() if asked is None else asked.sources

    # The engine's side.

    def open(
        self,
        request: int,
        token_ids: Sequence[int],
        sampling: Sampling,
        now: float,
        *,
        max_depth: int = MAX_DEPTH,
        max_source_nodes: int = MAX_SOURCE_NODES,
        ask: bool = True,
    ) -> DraftedText:
        """Take up a request; its drafts come to hang in ``text.pool``.

        Without `ask` no remote hears of it until `ask` is called.

        Raises:
            ValueError: the number is in use.
        """
        if request in self.texts:
            raise ValueError(f"request {request}: expected a new number, it is in use")
        text = self.texts[request] = DraftedText(
            request,
            token_ids,
            sampling,
            vocab_size=self._vocab_size,
            sources=self.sources,
            now=now,
            max_depth=max_depth,
            max_source_nodes=max_source_nodes,
        )
        if sampling.rule == "rejection":
            self._num_draws += 1
            self._limit_size()
        if ask:
            self.ask(request)
        return text

    def ask(self, request: int) -> None:
        """From now on remotes are asked to draft for a request."""
        if request not in self._asked:
            self._asked[request] = _Asked(self.texts[request])
            self._judge_length(request)
            self._must_assign = True

    def commit(
        self, request: int, token_ids: Sequence[int], drafted_by: Iterable[int | None], now: float
    ) -> None:
        """A request's text went on; see `DraftedText.commit`."""
        offenders = self.texts[request].commit(token_ids, drafted_by, now)
        self._stale.add(request)
        self._judge_length(request)
        for source, reason in offenders.items():
            if source in self._peers:
                self._quarantine(self._sessions[self._peers[source]].key, reason, now)

    def close(self, request: int, reason: str) -> None:
        """A request has ended; unknown ones are over."""
        text = self.texts.pop(request, None)
        if text is None:
            return
        if text.sampling.rule == "rejection":
            self._num_draws -= 1
            self._limit_size()
        asked = self._asked.pop(request, None)
        self._stale.discard(request)
        if asked is not None:
            for source in self._peers:
                self._end_request(source, request, reason)
            self._must_assign = True

    # The carrier's side.

    def wake_at(self) -> float:
        """When `to_send` has something to say, if nothing happens before."""
        return self._ticked_ms + self._tick_ms

    def to_send(self, now: float) -> list[Outgoing]:
        """What drafters are to hear now. It counts as sent."""
        if now - self._ticked_ms >= self._tick_ms:
            self._tick(now)
        if self._must_assign:
            self._assign(now)
        for request in self._stale:
            asked = self._asked.get(request)
            if asked is not None:
                for source in asked.sources:
                    self._update(asked.text, source, now)
        self._stale.clear()
        outbox, self._outbox = self._outbox, {}
        found = []
        for peer, messages in outbox.items():
            packer = Packer()
            for message in messages:
                num_bytes = packer.add(message)
                text = self.texts.get(getattr(message, "request", None) or -1)
                if text is not None:
                    text.bytes_sent += num_bytes
            for frame in packer.frames():
                self.counters["sent"] += 1
                self.counters["bytes_sent"] += len(frame.data)
                found.append(Outgoing(peer, frame))
        return found

    def undelivered(self, outgoing: Outgoing, now: float, *, is_gone: bool = False) -> None:
        """A frame could not be sent and is lost; `is_gone`: nor will any other to that peer."""
        self.counters["sends_dropped"] += 1
        session = self._sessions.get(outgoing.peer)
        if session is None:
            return
        for message in outgoing.frame.messages:
            session.failed(message, now)
        if is_gone:
            self._drop(outgoing.peer, "disconnected")

    def disconnected(self, peer: bytes) -> None:
        """The carrier saw the connection go."""
        self._drop(peer, "disconnected")

    def receive(self, peer: bytes, key: str, frames: Sequence[bytes], now: float) -> bool:
        """A frame came of a peer that holds this enrolled key; whether a draft in it adds anything.

        `frames` are the parts of the carrier's message, of which there should be one.
        """
        session = self._sessions.get(peer)
        if session is not None and session.key != key:
            # A routing id is free again once its owner has gone, for any enrolled key.
            self._drop(peer, "routing_id_reused")
            session = None
        try:
            if len(frames) != 1:
                raise ProtocolError(f"message: expected 1 frame, got {len(frames)}")
            messages = decode_frame(frames[0])
        except UnsupportedVersion as error:
            self.turn_away(self.name_of(key), f"version: {error}")
            self._say(peer, Error.of(ErrorCode.VERSION, error))
            self.counters["other_version"] += 1
            return False
        except ProtocolError as error:
            self._on_malformed(peer, key, str(error), now)
            return False
        drafted: list[DraftedText] = []
        brings = False
        num_messages = 0
        for message in messages:
            num_messages += 1
            if isinstance(message, ProtocolError):
                self._on_malformed(peer, key, str(message), now)
            elif isinstance(message, Draft) and session is not None and session.ready:
                brings |= self._on_draft(session, message, drafted, now)
            else:
                self._on_message(peer, key, message, now)
                session = self._sessions.get(peer)
            if self.admission.is_quarantined(key, now):
                break  # The rest is not read.
        for text in drafted:
            text.bytes_received += len(frames[0]) // num_messages
        return brings

    def _on_message(self, peer: bytes, key: str, message: Message, now: float) -> None:
        if isinstance(message, Hello):
            self._on_hello(peer, key, message, now)
            return
        session = self._sessions.get(peer)
        if session is None:
            self.counters["before_hello"] += 1
            if not isinstance(message, Error):
                reason = f"expected HELLO first, got {type(message).__name__}"
                self._say(peer, Error.of(ErrorCode.UNEXPECTED, reason))
            return
        reaction = session.on_message(message, now)
        self._say(peer, *reaction.send)
        if reaction.malformed:
            self._on_malformed(peer, key, reaction.malformed, now)
        if isinstance(message, Error | Close):
            self._must_assign = True

    def refused(self, peer: bytes, key: str, refusal: Refusal, now: float) -> None:
        """`admission` did not let a message pass."""
        if refusal is Refusal.QUARANTINED:
            reason = self.admission.answer(key, now)
            if reason is not None:
                self._say(peer, Error.of(ErrorCode.MALFORMED, reason))

    def unlisted(self, key: str) -> None:
        """A key was taken off the allow-list: its session ends."""
        reason = "this drafter's key was taken off the verifier's allow-list"
        for peer in self._peers_of(key):
            for request in list(self._asked):
                self._end_request(self._sessions[peer].source, request, reason)
            self._say(peer, Error.of(ErrorCode.NOT_ENROLLED, reason))
            self._drop(peer, "unlisted")

    def turn_away(self, who: str, reason: str) -> None:
        """Somebody was not let in."""
        self.refusals.add(who, reason)
        self.events.emit(events.TurnedAway(who, reason))

    @property
    def _tick_ms(self) -> float:
        return self.config.session.heartbeat_ms / 4

    def _tick(self, now: float) -> None:
        self._ticked_ms = now
        for peer, session in list(self._sessions.items()):
            self._say(peer, *session.tick(now))
            if session.state is State.ENDED:
                self._drop(peer, "dead")
                continue
            source = session.source
            load = sum(source in asked.sources for asked in self._asked.values())
            self._keeping_up[source].judge(load, self._late_rounds(session), now)
        self._must_assign = True
        self._stale |= self._asked.keys()  # what was put off, or was lost

    def _assign(self, now: float) -> None:
        """Choose who drafts for whom, and tell those who are asked no more."""
        self._must_assign = False
        seats = [self._seats_of(session, now) for session in self._sessions.values()]
        fixed = frozenset(
            number
            for number, asked in self._asked.items()
            if asked.sources and now - asked.moved_ms < MOVES_MS
        )
        current = {number: asked.sources for number, asked in self._asked.items()}
        chosen = assign(list(self._asked), seats, current, fixed=fixed)
        for number, asked in self._asked.items():
            sources = chosen[number]
            if sources == asked.sources:
                continue
            for source in asked.sources - sources:
                if source in self._peers:
                    self._end_request(source, number, "another drafter has it")
                    asked.text.retire(source)
                    self.events.emit(events.Released(number, source))
            if asked.sources - sources:
                asked.moved_ms = now
            asked.sources = sources
            self._stale.add(number)

    def _seats_of(self, session: Session, now: float) -> Seats:
        pace = self.sources.paces.get(session.source)
        distance = pace.reply_ms if pace is not None else None
        return Seats(
            session.source,
            self._keeping_up[session.source].num_seats,
            session.round_trip_ms if distance is None else distance,
            self.sources.worths.credit(session.source),
            session.declined(now) | self._too_long_for(session),
        )

    def _judge_length(self, request: int) -> None:
        asked = self._asked.get(request)
        if asked is None or asked.is_too_long:
            return
        length = len(asked.text.token_ids)
        asked.is_too_long = length > MAX_PROMPT_TOKENS
        if asked.is_too_long:
            logger.warning(
                "request %d: its text has %d tokens and OPEN holds %d at most: no remote drafter "
                "that does not follow it already is asked",
                request,
                length,
                MAX_PROMPT_TOKENS,
            )

    def _too_long_for(self, session: Session) -> frozenset[int]:
        """Requests of which the drafter could not be told: they take none of its seats."""
        return frozenset(
            number
            for number, asked in self._asked.items()
            if asked.is_too_long and not session.knows(number)
        )

    def _late_rounds(self, session: Session) -> float | None:
        """Target passes that a drafter's replies take beyond the way there and back."""
        pace = self.sources.paces.get(session.source)
        if pace is None or pace.reply_ms is None or session.round_trip_ms is None:
            return None
        return (pace.reply_ms - session.round_trip_ms) / max(1e-3, self.sources.round_ms)

    def _update(self, text: DraftedText, source: int, now: float) -> None:
        """Bring one drafter up to a text."""
        peer = self._peers.get(source)
        if peer is None:
            return
        session = self._sessions[peer]
        for message in session.update(text, now):
            session.sent(message, now)
            self._say(peer, message)
            if isinstance(message, Open):
                text.enrol(source, self.name_of(session.key), session.round_trip_ms)
                self.events.emit(events.Asked(text.number, source))

    def _on_hello(self, peer: bytes, key: str, hello: Hello, now: float) -> None:
        same_key = self._peers_of(key)
        if not same_key and len(self._sessions) >= self.config.max_sessions:
            self.counters["sessions_refused"] += 1
            reason = f"expected at most {self.config.max_sessions} drafters"
            self.turn_away(self.name_of(key), f"capacity: {reason}")
            self._say(peer, Error.of(ErrorCode.CAPACITY, reason))
            return
        session = Session(
            next(self._numbers),
            key,
            vocabulary=self._vocabulary,
            now=now,
            opens_after=now + self.config.session.reopen_ms if same_key else now,
            config=self.config.session,
        )
        for reply in session.on_message(hello, now).send:
            if isinstance(reply, Error):
                self.turn_away(self.name_of(key), reply.message)
            self._say(peer, reply)
        if not session.ready:
            self.counters["hello_refused"] += 1
            return
        for old in same_key:
            if old != peer:
                reason = "the same key said HELLO on another connection"
                self._say(old, Error.of(ErrorCode.SUPERSEDED, reason))
            self._drop(old, "superseded")
        self._sessions[peer] = session
        self._peers[session.source] = peer
        self._keeping_up[session.source] = KeepingUp(hello.max_requests, now)
        name = self.name_of(key)
        logger.info("drafter %s (%s) joined", name, hello.model)
        self.events.emit(events.Joined(session.source, name, hello.model))
        self._say(peer, *session.tick(now))
        self._must_assign = True

    def _on_draft(
        self, session: Session, draft: Draft, drafted: list[DraftedText], now: float
    ) -> bool:
        session.on_message(draft, now)  # It was heard.
        text = self.texts.get(draft.request)
        if text is None:
            self.counters["drafts_without_request"] += 1
            return False
        drafted.append(text)
        outcome = text.offer(session.source, draft, now)
        if self.events.wanted:
            self.events.emit(events.Offered(session.source, draft, outcome))
        if outcome.kind is Kind.INVALID:
            self._quarantine(session.key, outcome.reason, now)
        return outcome.new_claims > 0

    def _on_malformed(self, peer: bytes, key: str, reason: str, now: float) -> None:
        self.counters["malformed"] += 1
        self._say(peer, Error.of(ErrorCode.MALFORMED, reason))
        if self.admission.malformed(key, now):
            self._quarantine(key, f"too many malformed messages, the last: {reason}", now)

    def _quarantine(self, key: str, reason: str, now: float) -> None:
        """Say why, end the key's session, and read nothing of the key for a while."""
        name = self.name_of(key)
        logger.warning("drafter %s is quarantined: %s", name, reason)
        self.turn_away(name, f"quarantined: {reason}")
        self.events.emit(events.Quarantined(name, reason))
        self.admission.quarantine(key, reason, now)
        for peer in self._peers_of(key):
            self._say(peer, *self._sessions[peer].quarantine(reason))
            self._drop(peer, "quarantined")

    def _end_request(self, source: int, request: int, reason: str) -> None:
        peer = self._peers.get(source)
        if peer is not None:
            self._say(peer, *self._sessions[peer].close_request(request, reason))

    def _drop(self, peer: bytes, reason: str) -> None:
        session = self._sessions.pop(peer, None)
        if session is None:
            return
        source = session.source
        del self._peers[source], self._keeping_up[source]
        self.counters[f"sessions_{reason}"] += 1
        session.end(reason)
        for asked in self._asked.values():
            asked.sources -= {source}
        for text in self.texts.values():
            text.retire(source)
        self.sources.retire(source)
        self._must_assign = True
        name = self.name_of(session.key)
        logger.info("drafter %s left: %s", name, session.end_reason)
        self.events.emit(events.Left(source, name, session.end_reason))

    def _peers_of(self, key: str) -> list[bytes]:
        return [peer for peer, session in self._sessions.items() if session.key == key]

    def _say(self, peer: bytes, *messages: Message) -> None:
        if messages:
            self._outbox.setdefault(peer, []).extend(messages)

    def _limit_size(self) -> None:
        # Only draws make a message large; under `match` none has a use.
        self.admission.max_bytes = MAX_MESSAGE_BYTES if self._num_draws else MAX_PLAIN_BYTES
