"""Pool: the drafts of one request, from all sources, as one trie keyed by absolute path."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from wanspec_kernels.drafts.outcome import Kind, Outcome
from wanspec_kernels.drafts.pool_node import HOME, PoolNode
from wanspec_kernels.drafts.pool_trie import STALE, PoolTrie
from wanspec_kernels.drafts.pool_vocabulary import within_vocabulary
from wanspec_kernels.drafts.selection import (
    Selection,
    credit_below,
    select_expanded,
    select_likeliest,
)
from wanspec_kernels.drafts.worth import TRUSTED, Believed, Worths
from wanspec_kernels.tree import Expansion
from wanspec_kernels.wire import Draft, check_of
from wanspec_kernels.wire.confidence import code_of

__all__ = ["HOME", "MAX_EARLY_DRAFTS", "Kind", "Outcome", "Pool", "Selection"]

MAX_EARLY_DRAFTS = 16  # held for each source


class Pool:
    """Merges drafts; any order and any repetition of the same drafts gives the same content.

    A draft is a trie that hangs from some committed length. It is followed along what was committed
    since, and what hangs below the root is merged by path. Every source has its own bound
    `max_source_nodes`, so that none can crowd out another; what lies past it is dropped, reported,
    and so is what hangs from a token past the vocabulary.
    What a source's drafts are worth is learnt at every commit in `worths`, which the requests of
    one verifier share; with less credit than `TRUSTED` it counts as if it had not drafted.

    Under `rejection` each source also has one group of draws a node. Whether a group is kept, and
    whether it is verified, must not depend on the values drawn in it or in groups verified after
    it: seeing only groups that, say, came out small would change the distribution the draws are
    believed to have. So bounds and budgets count a fixed charge for a group (`num_draws`) and for
    an expanded node (`num_draws` times the sources enrolled), whatever tokens the draws fell on;
    and a node's groups are verified as they arrived, because a policy that drafts at home or waits
    has looked at what was here by then.
    """

    def __init__(
        self,
        request: int,
        token_ids: Sequence[int],
        *,
        vocab_size: int,
        rule: Literal["match", "rejection"] = "match",
        num_draws: int = 0,
        replacement: bool = False,
        max_source_nodes: int = 1024,
        worths: Worths | None = None,
    ) -> None:
        self.request = request
        self.token_ids = list(token_ids)
        self.worths = Worths() if worths is None else worths
        self.followed = 0.0  # committed tokens that the pool had, where it had anything,
        self.left = 0.0  # and those that it had not, by the credit of who had drafted there
        self._first_length = len(self.token_ids)
        self._checks = [check_of(self.token_ids)]  # by length, from _first_length on
        self._vocab_size = vocab_size
        self.rejection = rule == "rejection"
        self._num_draws = num_draws
        self._replacement = replacement
        self._trie = PoolTrie(self.token_ids[-1], max_source_nodes, num_draws)
        self._early: list[tuple[int, Draft]] = []
        self._enrolled: set[int] = set()
        self._redrawing: set[int] = set()

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def check(self) -> int:
        """`check_of` the committed text."""
        return self._checks[-1]

    @property
    def root(self) -> PoolNode:
        """The last committed token, and all that is known below it."""
        return self._trie.root

    @property
    def charge(self) -> int:
        """Rows that an expanded node is counted for under `rejection`, whatever was drawn there."""
        return self._num_draws * max(1, len(self._enrolled))

    @property
    def enrolled(self) -> frozenset[int]:
        return frozenset(self._enrolled)

    @property
    def num_early(self) -> int:
        return len(self._early)

    def __len__(self) -> int:
        """Draft nodes alive."""
        return sum(1 for _ in self._trie.root.below())

    def enrol(self, source: int) -> None:
        """Let a source offer drafts.

        Once more for a source enrolled already says that its request was opened anew: it may then
        draw again where it had drawn. The group that came first stays; without this, a second and
        different one is invalid.
        """
        if source in self._enrolled:
            self._redrawing.add(source)
        self._enrolled.add(source)

    def retire(self, source: int) -> None:
        """Forget a source, as if it had never offered anything."""
        self._enrolled.discard(source)
        self._redrawing.discard(source)
        self._early = [held for held in self._early if held[0] != source]
        self._trie.forget(source)

    def offer(self, source: int, draft: Draft) -> Outcome:
        if draft.request != self.request:
            reason = f"expected request {self.request}, got {draft.request}"
            return Outcome(Kind.FOREIGN, reason=reason)
        if source not in self._enrolled:
            return Outcome(Kind.FOREIGN, reason=f"source {source} is not enrolled")
        reason = self._flaw(draft)
        if reason:
            return Outcome(Kind.INVALID, reason=reason)
        draft, num_dropped = within_vocabulary(draft, self._vocab_size)
        early = draft.base_length > len(self.token_ids)
        outcome = self._hold(source, draft) if early else self._settle(source, draft)
        if num_dropped:
            outcome = replace(
                outcome,
                dropped_nodes=outcome.dropped_nodes + num_dropped,
                reason=outcome.reason or f"expected tokens below {self._vocab_size}",
            )
        return outcome

    def pass_begins(self) -> None:
        """What comes until the next commit is too late to show what its source is worth.

        A drafter could else earn credit by tokens that the pass under way decides anyway.
        """
        self._trie.pass_begins()

    def commit(self, token_ids: Sequence[int]) -> list[tuple[int, Outcome]]:
        """Re-root below the new tokens; returns what became of early drafts now settled."""
        for token in token_ids:
            self.token_ids.append(token)
            self._checks.append(check_of([token], self._checks[-1]))
            root = self._trie.root
            if root.children and not self.rejection:
                self._learn(root, root.children.get(token))
            self._trie.descend(token)
        self._trie.pass_ends()
        if not self._early:
            return []
        due = [held for held in self._early if held[1].base_length <= self.length]
        self._early = [held for held in self._early if held[1].base_length > self.length]
        return [(source, self._settle(source, draft)) for source, draft in due]

    def select(self, max_rows: int, max_depth: int, *, acceptance: float = 0.7) -> Selection:
        """The tree to verify: at most `max_rows` rows, the root among them.

        `match`: the rows likeliest to be on the path, parents first, in that order.

        `rejection`: expanded nodes in order of arrival, from the root down, each with all its
        groups as they arrived, as many as fit by the fixed charge (see the class); what it promises
        rests on the `acceptance` of a level.
        """
        if self.rejection:
            return select_expanded(
                self.root,
                self.charge,
                acceptance,
                max_rows,
                max_depth,
                replacement=self._replacement,
            )
        return select_likeliest(self.root, self.believed(), max_rows, max_depth)

    def as_draft(self, selection: Selection) -> Draft:
        """Of a selection's rows those of sources that count, with what they are believed to be.

        They are to be grown on, at home, which knows better than who does not count.
        """
        tree, probabilities = selection.tree, selection.probabilities
        trusted = self.trusted()
        place = {0: -1}  # by row: that in the draft
        token_ids: list[int] = []
        parents: list[int] = []
        codes: list[int] = []
        for row in range(1, len(tree.parents)):
            parent = tree.parents[row]
            if parent in place and not trusted.isdisjoint(selection.sources[row]):
                place[row] = len(token_ids)
                token_ids.append(tree.token_ids[row])
                parents.append(place[parent])
                codes.append(code_of(probabilities[row] / probabilities[parent]))
        return Draft(
            self.request,
            self.length,
            self.check,
            tuple(token_ids),
            tuple(parents),
            (),
            bytes(codes),
        )

    def content(self) -> dict[tuple[int, ...], tuple[frozenset[int], dict[int, Expansion]]]:
        """By path below the root: the sources, and their draws (tokens in place of indices)."""
        found = {}
        stack: list[tuple[tuple[int, ...], PoolNode]] = [((), self._trie.root)]
        while stack:
            path, node = stack.pop()
            groups = {s: Expansion(0, *group) for s, (_, group) in node.groups.items()}
            if path or groups:
                found[path] = (frozenset(node.sources), groups)
            stack += [((*path, token), child) for token, child in node.children.items()]
        return found

    def codes(self) -> dict[tuple[int, ...], dict[int, int]]:
        """By path below the root: the best code that each source gave the node."""
        found = {}
        stack: list[tuple[tuple[int, ...], PoolNode]] = [((), self._trie.root)]
        while stack:
            path, node = stack.pop()
            if path:
                found[path] = dict(node.sources)
            stack += [((*path, token), child) for token, child in node.children.items()]
        return found

    def believed(self) -> dict[int, Believed]:
        """How far each source's drafts count."""
        return {source: self.worths.believed(source) for source in self._enrolled}

    def trusted(self) -> set[int]:
        """Sources of credit: those to count on."""
        return {source for source, b in self.believed().items() if b.credit >= TRUSTED}

    def _learn(self, root: PoolNode, child: PoolNode | None) -> None:
        """A token was decided below `root`: what had the sources said of it?"""
        credit = credit_below(root, self.believed())
        if child is None:
            self.left += credit
        else:
            self.followed += credit
        codes: dict[int, list[int]] = {}
        hits: dict[int, int] = {}
        for node in root.children.values():
            in_time = self._trie.codes_in_time(node)
            if node is child:
                hits = in_time
            for source, code in in_time.items():
                codes.setdefault(source, []).append(code)
        for source, its_codes in codes.items():
            self.worths.of(source).observe(its_codes, hits.get(source))

    def _flaw(self, draft: Draft) -> str:
        """What is wrong with a draft that is a valid message; "" if nothing is."""
        if draft.expansions and not self.rejection:
            return "expected no expansions under match"
        for expansion in draft.expansions:
            children = expansion.children
            if len(children) != self._num_draws:
                return f"expected {self._num_draws} draws a node, got {len(children)}"
            if not self._replacement and len(set(children)) != len(children):
                return "expected draws without replacement, got one token twice"
        return ""

    def _hold(self, source: int, draft: Draft) -> Outcome:
        if (source, draft) not in self._early:
            if sum(s == source for s, _ in self._early) >= MAX_EARLY_DRAFTS:
                dropped = len(draft.token_ids)
                return Outcome(Kind.EARLY, dropped_nodes=dropped, reason="too many are held")
            self._early.append((source, draft))
        return Outcome(Kind.EARLY)

    def _settle(self, source: int, draft: Draft) -> Outcome:
        if draft.base_length < self._first_length:
            reason = f"expected a base of {self._first_length} or more, got {draft.base_length}"
            return Outcome(Kind.FOREIGN, reason=reason)
        check = self._checks[draft.base_length - self._first_length]
        if draft.base_check != check:
            reason = f"expected check {check} at length {draft.base_length}, got {draft.base_check}"
            return Outcome(Kind.FOREIGN, reason=reason)

        # Follow the committed text down to the message's own index of the root.
        at = -1
        for token in self.token_ids[draft.base_length :]:
            at = _child_of(draft, at, token)
            if at < 0:
                return STALE
        if self.rejection:
            return self._trie.merge_draws(source, draft, at, redraws=source in self._redrawing)
        return self._trie.merge(source, draft, at)


def _child_of(draft: Draft, parent: int, token: int) -> int:
    """The index of a node's child with this token, or -1."""
    at = parent
    try:
        while True:
            at = draft.token_ids.index(token, at + 1)
            if draft.parents[at] == parent:
                return at
    except ValueError:
        return -1
