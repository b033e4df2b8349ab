"""Sequence: one request on its way from its prompt to its last token."""

from collections.abc import Sequence as Many
from enum import Enum
from typing import Literal

from wanspec_kernels.control.estimates import Estimates
from wanspec_kernels.drafts.pool import HOME, Kind, Outcome, Pool
from wanspec_kernels.drafts.replies import Replies
from wanspec_kernels.engine.generation import check_verdict
from wanspec_kernels.engine.request import Limits, Request
from wanspec_kernels.engine.statistics import Statistics
from wanspec_kernels.tree import HostTree
from wanspec_kernels.wire import Draft, Open

FinishReason = Literal["length", "stop", "cancelled", "failed"]


class State(Enum):
    WAITING = "waiting"  # It holds no pages: it was not admitted yet, or was preempted.
    READY = "ready"  # The next pass may take it along.
    RUNNING = "running"  # It takes part in the pass under way.
    ENDED = "ended"


class Sequence:
    """The text of one request, the drafts for it, and what became of them.

    It decides nothing about passes; that is the scheduler's.
    """

    def __init__(
        self,
        number: int,
        request: Request,
        *,
        vocab_size: int,
        limits: Limits,
        estimates: Estimates,
        now: float,
    ) -> None:
        if max(request.token_ids) >= vocab_size or min(request.token_ids) < 0:
            raise ValueError(f"token_ids: expected tokens of 0..{vocab_size - 1}, got another")
        sampling = request.sampling
        rejection = sampling.rule == "rejection"
        self.number = number
        self.request = request
        self.limits = limits
        self.state = State.WAITING
        self.statistics = Statistics()
        self.output_ids: list[int] = []
        self.output_sources: list[int | None] = []  # of each token; None: the target's own
        self.offenders: dict[int, str] = {}  # sources whose early draft turned out invalid, and why
        self.finish_reason: FinishReason | None = None
        self.submitted_ms = now
        self.is_cancelled = False
        self.num_written = 0  # slots that hold keys and values of the text
        self.pool = Pool(
            number,
            request.token_ids,
            vocab_size=vocab_size,
            rule=sampling.rule,
            num_draws=sampling.num_draws if rejection else 0,
            replacement=sampling.replacement,
            max_source_nodes=limits.max_source_nodes,
            worths=estimates.sources.worths,
        )
        self.replies = Replies(estimates.sources)
        self.replies.committed(self.pool.length, now)
        self._sources = estimates.sources
        self._counted = (0.0, 0.0)  # the pool's followed and left at the last commit

    @property
    def token_ids(self) -> list[int]:
        """The committed text, prompt and output."""
        return self.pool.token_ids

    @property
    def check(self) -> int:
        return self.pool.check

    @property
    def done(self) -> bool:
        return self.state is State.ENDED

    @property
    def unread(self) -> int:
        """Tokens of the text that have no keys and values yet, but for the last one."""
        return self.pool.length - 1 - self.num_written

    @property
    def room(self) -> int:
        """Tokens that the output may still grow by."""
        room = self.request.max_tokens - len(self.output_ids)
        if self.limits.max_length is not None:
            room = min(room, self.limits.max_length - self.pool.length + 1)
        return room

    @property
    def max_depth(self) -> int:
        """Of a tree: the target's own token comes on top."""
        return min(self.limits.max_depth, self.room - 1)

    @property
    def max_rows(self) -> int:
        if self.limits.max_length is None:
            return self.limits.max_rows
        return min(self.limits.max_rows, self.limits.max_length - self.pool.length + 1)

    def open_message(self, max_nodes: int, *, home: bool = False) -> Open:
        """OPEN with all that is committed. Home is trusted: it gets the seed under any `match`."""
        return Open.of(
            self.number,
            self.pool.token_ids,
            self.request.sampling,
            max_nodes=max_nodes,
            max_depth=self.limits.max_depth,
            trusted=home,
        )

    def max_nodes_of(self, source: int, most: int) -> int:
        """Of the tree that a remote drafter is asked for, which keeps `most`."""
        return self._sources.usefulness.max_nodes(source, most)

    def enrol(self, source: int, round_trip_ms: float | None = None) -> None:
        """OPEN was sent to a remote drafter, for the first time or anew."""
        self.pool.enrol(source)
        self._sources.enrol(source, round_trip_ms)

    def retire(self, source: int) -> None:
        """A drafter has gone, and nothing is expected of it any more."""
        self.pool.retire(source)
        self.replies.retire(source)
        self._sources.retire(source)

    def offer(self, source: int, draft: Draft, now: float) -> Outcome:
        if self.done:
            outcome = Outcome(Kind.STALE, reason="the request has ended")
        else:
            outcome = self.pool.offer(source, draft)
        self.statistics.outcomes[outcome.kind] += 1
        self.statistics.nodes_dropped += outcome.dropped_nodes
        heard = (Kind.NEW, Kind.LATE, Kind.DUPLICATE, Kind.STALE)
        if outcome.kind in heard and source != HOME:
            self.replies.heard(source, draft.base_length, now)
        return outcome

    def commit(
        self,
        tree: HostTree,
        sources: Many[Many[int]],
        token_ids: Many[int],
        accepted_nodes: Many[int],
        now: float,
    ) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
        """The target's verdict on a tree; returns what is committed, and who drafted each token.

        Raises:
            ValueError: the verdict is no path of that tree with one token after it.
        """
        check_verdict(tree, token_ids, accepted_nodes)
        drafted_by = [sources[node][0] for node in accepted_nodes]
        self._sources.usefulness.observe(drafted_by)
        committed, reason = self._until_end(token_ids)
        flags: tuple[int | None, ...] = (*drafted_by, None)[: len(committed)]
        self.output_ids += committed
        self.output_sources += flags
        # The root has a slot now, and so has each accepted draft.
        self.num_written += len(committed)
        s = self.statistics
        s.target_passes += 1
        s.rows += len(tree.token_ids)
        s.tokens += len(committed)
        s.accepted.append(len(accepted_nodes))
        s.home_tokens_accepted += sum(flag == HOME for flag in flags)
        s.remote_tokens_accepted += sum(flag is not None and flag != HOME for flag in flags)
        for source, outcome in self.pool.commit(committed):
            s.outcomes[outcome.kind] += 1
            if outcome.kind is Kind.INVALID:
                self.offenders[source] = outcome.reason
        self.replies.committed(self.pool.length, now)
        if reason is not None:
            self.end(reason)
        return tuple(committed), flags

    def followed(self) -> tuple[float, float]:
        """Tokens committed since the last call that the pool had, and that it had not."""
        before, self._counted = self._counted, (self.pool.followed, self.pool.left)
        return self._counted[0] - before[0], self._counted[1] - before[1]

    def end(self, reason: FinishReason) -> None:
        self.state, self.finish_reason = State.ENDED, reason

    def _until_end(
        self, token_ids: Many[int]
    ) -> tuple[list[int], Literal["length", "stop"] | None]:
        """The tokens up to the one that ends the text, and why it ends there."""
        room = self.room
        for i, token in enumerate(token_ids[:room]):
            if token in self.request.stop_token_ids:
                return list(token_ids[: i + 1]), "stop"
        return list(token_ids[:room]), "length" if len(token_ids) >= room else None
