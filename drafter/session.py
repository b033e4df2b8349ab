"""Session: the requests of one verifier. Messages in, messages out; no socket, no clock."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from drafter.growth import Growth, GrowthShape
from drafter.passes import Drafting, Model, Proposer, proposer_of, run_pass
from wanspec_kernels.wire import (
    Close,
    Commit,
    Draft,
    Error,
    ErrorCode,
    Message,
    Open,
    check_of,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    max_requests: int = 16
    max_nodes: int = 256  # of one request's tree


@dataclass
class Counters:
    num_opened: int = 0
    num_refused: int = 0
    num_closed: int = 0
    num_failed: int = 0  # by the model
    num_commits: int = 0
    num_repeated_commits: int = 0
    num_resyncs: int = 0
    num_unknown: int = 0  # messages for requests not held
    num_passes: int = 0
    num_tokens: int = 0  # run through the model
    num_nodes: int = 0  # sent, ancestors counted again
    num_drafts: int = 0
    num_drafts_dropped: int = 0


@dataclass(slots=True)
class _Entry:
    request: Open
    drafting: Drafting
    lost: bool = False  # a commit did not fit: waits to be opened anew


class Session:
    """Grows the trees of all open requests, one batched pass a `step`.

    The verifier is not trusted: a message that does not fit is answered with an ERROR and costs at
    most the request it names.
    """

    def __init__(
        self,
        model: Model | Proposer,
        *,
        limits: Limits | None = None,
        shape: GrowthShape | None = None,
    ) -> None:
        self.counters = Counters()
        self._proposer = proposer_of(model)
        self._limits = limits or Limits()
        self._shape = shape or GrowthShape()
        self._entries: dict[int, _Entry] = {}
        self._busy = False

    @property
    def busy(self) -> bool:
        """There may be something to do for `step`."""
        return self._busy

    @property
    def requests(self) -> tuple[int, ...]:
        return tuple(self._entries)

    def on_message(self, message: Message) -> list[Message]:
        """Take in OPEN, COMMIT, CLOSE, or an ERROR about a request; the answers."""
        self._busy = True
        match message:
            case Open():
                return self._open(message)
            case Commit():
                return self._commit(message)
            case Close(request=request):
                self._close(request)
            case Error(request=int(request)):
                log.warning("request %d: %s: %s", request, message.code, message.message)
                self._close(request)
            case _:
                name = type(message).__name__.upper()
                return [Error.of(ErrorCode.UNEXPECTED, f"{name}: not a drafter's to receive")]
        return []

    def step(self) -> list[Error]:
        """One pass over all requests; ERRORs of those that it failed for."""
        live = {id(e.drafting): e for e in self._entries.values() if not e.lost}
        result = run_pass(self._proposer, [e.drafting for e in live.values()])
        self._busy = result.num_tokens > 0
        self.counters.num_passes += self._busy
        self.counters.num_tokens += result.num_tokens
        out: list[Error] = []
        for drafting, error in result.failures:
            entry = live.pop(id(drafting))
            del self._entries[entry.request.request]
            self.counters.num_failed += 1
            log.error("request %d: the draft model failed: %s", entry.request.request, error)
            out.append(Error.of(ErrorCode.INTERNAL, error, entry.request.request))
        return out

    @property
    def num_unsent(self) -> int:
        """Nodes that `drafts` would send."""
        return sum(e.drafting.growth.num_unsent for e in self._entries.values() if not e.lost)

    def drafts(self, max_nodes: int | None = None) -> list[Draft]:
        """DRAFTs of about so many of the nodes not sent yet, the same of every request.

        Where that is less than a node each, one request has it all, and another the next time.
        """
        waiting = [
            request
            for request, entry in self._entries.items()
            if not entry.lost and entry.drafting.growth.num_unsent
        ]
        if max_nodes is not None and max_nodes < len(waiting):
            waiting = waiting[:1] if max_nodes else []
            for request in waiting:
                self._entries[request] = self._entries.pop(request)
        each = None if max_nodes is None else max_nodes // max(1, len(waiting))
        out: list[Draft] = []
        for request in waiting:
            out += self._entries[request].drafting.growth.take_drafts(each)
        self.counters.num_drafts += len(out)
        self.counters.num_nodes += sum(len(draft.token_ids) for draft in out)
        return out

    def on_dropped(self, draft: Draft) -> None:
        """A draft could not be sent: its nodes go with the next one."""
        self.counters.num_drafts_dropped += 1
        entry = self._entries.get(draft.request)
        if entry is not None:
            entry.drafting.growth.unsend()
            self._busy = True

    def reset(self) -> None:
        """Drop every request: the verifier on a new connection opens its own."""
        self._entries.clear()

    def close_all(self, reason: str) -> list[Close]:
        closes = [Close(request, reason) for request in self._entries]
        self.counters.num_closed += len(closes)
        self._entries.clear()
        return closes

    def _open(self, message: Open) -> list[Message]:
        entry = self._entries.get(message.request)
        problem = self._problem(message.token_ids)
        if problem is None and entry is None and not self._has_room():
            problem = Error.of(
                ErrorCode.CAPACITY,
                f"requests: expected at most {self._limits.max_requests}, got one more",
            )
        if problem is None:
            try:
                self._entries[message.request] = self._start(message, entry)
            except ValueError as error:
                problem = Error.of(ErrorCode.CAPACITY, error)
        if problem is not None:
            self._entries.pop(message.request, None)
            self.counters.num_refused += 1
            return [replace(problem, request=message.request)]
        self.counters.num_opened += 1
        return []

    def _start(self, message: Open, entry: _Entry | None) -> _Entry:
        if entry is not None and replace(entry.request, token_ids=message.token_ids) == message:
            # What is computed of the text stays of use.
            entry.drafting.growth.restart(message.token_ids)
            return _Entry(message, entry.drafting)
        growth = Growth(
            message,
            max_positions=self._proposer.max_positions,
            max_nodes=self._limits.max_nodes,
            shape=self._shape,
        )
        return _Entry(message, Drafting(growth, self._proposer.new_store()))

    def _has_room(self) -> bool:
        if len(self._entries) >= self._limits.max_requests:
            lost = next((r for r, entry in self._entries.items() if entry.lost), None)
            if lost is None:
                return False
            del self._entries[lost]
        return True

    def _problem(self, token_ids: Sequence[int], length: int = 0) -> Error | None:
        """Why the model cannot take `token_ids` after a text of `length`."""
        length += len(token_ids)
        if length > self._proposer.max_positions:
            most = self._proposer.max_positions
            return Error.of(
                ErrorCode.CAPACITY, f"text: expected at most {most} tokens, got {length}"
            )
        largest = max(token_ids)
        if largest >= self._proposer.vocab_size:
            most = self._proposer.vocab_size - 1
            return Error.of(ErrorCode.MALFORMED, f"token: expected 0..{most}, got {largest}")
        return None

    def _commit(self, message: Commit) -> list[Message]:
        entry = self._entries.get(message.request)
        if entry is None:
            self.counters.num_unknown += 1
            return [Error.of(ErrorCode.UNKNOWN_REQUEST, "COMMIT: not open", message.request)]
        if entry.lost:
            return []  # it was sent before our ERROR arrived
        growth = entry.drafting.growth
        self.counters.num_commits += 1
        if message.length == growth.length and message.check == growth.check:
            self.counters.num_repeated_commits += 1
            return []
        begins = message.length - len(message.token_ids)
        if begins != growth.length:
            return self._lose(entry, f"COMMIT: expected one after {growth.length}, got {begins}")
        if check_of(message.token_ids, growth.check) != message.check:
            return self._lose(entry, "COMMIT: its check is not that of the text here")
        problem = self._problem(message.token_ids, growth.length)
        if problem is not None:
            del self._entries[message.request]
            return [replace(problem, request=message.request)]
        growth.commit(message.token_ids)
        return []

    def _lose(self, entry: _Entry, why: str) -> list[Message]:
        entry.lost = True
        self.counters.num_resyncs += 1
        log.warning("request %d: %s", entry.request.request, why)
        return [Error.of(ErrorCode.RESYNC, why, entry.request.request)]

    def _close(self, request: int) -> None:
        if self._entries.pop(request, None) is None:
            self.counters.num_unknown += 1
        else:
            self.counters.num_closed += 1
