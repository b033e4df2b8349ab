"""Sequence: one request on its way from its prompt to its last token."""

from collections.abc import Sequence as Many
from enum import Enum
from typing import Literal

from wanspec_kernels.drafts.drafted_text import DraftedText
from wanspec_kernels.drafts.outcome import Outcome
from wanspec_kernels.drafts.pool import HOME, Pool
from wanspec_kernels.drafts.replies import Replies
from wanspec_kernels.engine.events import FinishReason
from wanspec_kernels.engine.request import Limits, Request
from wanspec_kernels.engine.statistics import Statistics
from wanspec_kernels.tree import HostTree
from wanspec_kernels.wire import Draft, Open


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
        request: Request,
        text: DraftedText,
        *,
        limits: Limits,
        now: float,
    ) -> None:
        self.number = text.number
        self.request = request
        self.text = text
        self.limits = limits
        self.state = State.WAITING
        self.statistics = Statistics(submitted_ms=now, outcomes=text.outcomes)
        self.output_ids: list[int] = []
        self.output_sources: list[int | None] = []  # of each token; None: the target's own
        self.finish_reason: FinishReason | None = None
        # It ends so with the pass that it takes part in, and nothing more of it is committed.
        self.ending: FinishReason | None = None
        self.deadline_ms = None if request.deadline_ms is None else now + request.deadline_ms
        self.ready_ms = now  # since when the next pass might have taken it along, if it is READY
        self.num_written = 0  # slots that hold keys and values of the text
        self._counted = (0.0, 0.0)  # the pool's followed and left at the last commit

    @property
    def pool(self) -> Pool:
        return self.text.pool

    @property
    def replies(self) -> Replies:
        return self.text.replies

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
        return self.text.open_message(max_nodes, home=home)

    def offer(self, source: int, draft: Draft, now: float) -> Outcome:
        return self.text.offer(source, draft, now)

    def commit(
        self,
        tree: HostTree,
        sources: Many[Many[int]],
        token_ids: Many[int],
        accepted_nodes: Many[int],
        now: float,
    ) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
        """The target's verdict on a tree; returns what to commit, and who drafted each token.

        The text itself goes on when the exchange is told.

        Raises:
            ValueError: the verdict is no path of that tree with one token after it.
        """
        check_verdict(tree, token_ids, accepted_nodes)
        drafted_by = [sources[node][0] for node in accepted_nodes]
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
        s.first_token_ms = now if s.first_token_ms is None else s.first_token_ms
        s.last_token_ms = now
        s.accepted.append(len(accepted_nodes))
        s.home_tokens_accepted += sum(flag == HOME for flag in flags)
        s.remote_tokens_accepted += sum(flag is not None and flag != HOME for flag in flags)
        if reason is not None:
            self.end(reason)
        return tuple(committed), flags

    def followed(self) -> tuple[float, float]:
        """Tokens committed since the last call that the pool had, and that it had not."""
        before, self._counted = self._counted, (self.pool.followed, self.pool.left)
        return self._counted[0] - before[0], self._counted[1] - before[1]

    def account(self) -> None:
        """Take over what was counted of its drafts."""
        self.statistics.nodes_dropped = self.text.nodes_dropped
        self.statistics.wire_bytes_sent = self.text.bytes_sent
        self.statistics.wire_bytes_received = self.text.bytes_received

    def is_past_deadline(self, now: float) -> bool:
        return self.deadline_ms is not None and now >= self.deadline_ms

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


def check_verdict(tree: HostTree, token_ids: Many[int], accepted_nodes: Many[int]) -> None:
    """Raise ValueError unless the verdict is a path of the tree with one token after it."""
    if len(token_ids) != len(accepted_nodes) + 1:
        raise ValueError(
            f"verdict: expected {len(accepted_nodes) + 1} tokens, got {len(token_ids)}"
        )
    at = 0
    for token, node in zip(token_ids, accepted_nodes, strict=False):
        if not 0 < node < len(tree.parents) or tree.parents[node] != at:
            raise ValueError(f"verdict: expected a child of node {at}, got node {node}")
        if tree.token_ids[node] != token:
            raise ValueError(f"verdict: expected token {tree.token_ids[node]}, got {token}")
        at = node
