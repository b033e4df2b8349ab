"""Pool: the drafts of one request, from all sources, as one trie keyed by absolute path."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from heapq import heappop, heappush
from typing import Literal, NamedTuple

from wanspec_kernels.protocol import Draft, check_of
from wanspec_kernels.tree import Expansion, HostTree

HOME = 0
"""The source number of the drafter at home; remote ones have higher numbers, in enrolment order."""

MAX_EARLY_DRAFTS = 16  # held for each source


class Kind(StrEnum):
    """What became of a draft; each has exactly one."""

    NEW = "new"  # hangs from the committed text and adds to the pool
    LATE = "late"  # hangs from an older base, and something of it still adds to the pool
    DUPLICATE = "duplicate"  # all of it is here already
    STALE = "stale"  # nothing of it hangs below the committed text
    EARLY = "early"  # its base is newer than the committed text; held until that commit
    FOREIGN = "foreign"  # of another request, or its base is not this text
    INVALID = "invalid"  # what no honest drafter sends


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: Kind
    new_nodes: int = 0
    dropped_nodes: int = 0  # past a bound
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """A tree for the target, and who brought each of its rows."""

    tree: HostTree
    sources: tuple[tuple[int, ...], ...]  # of each row, first to bring it first; none at the root
    depths: tuple[int, ...]  # of each row

    @property
    def depth(self) -> int:
        return max(self.depths)

    def depth_of(self, source: int) -> int:
        """How deep this source's own rows reach."""
        rows = zip(self.depths, self.sources, strict=True)
        return max((d for d, sources in rows if source in sources), default=0)


class _Group(NamedTuple):
    """One source's draws at one node, without message-local indices."""

    drawn: tuple[int, ...]  # tokens, in order
    token_ids: tuple[int, ...]
    weights: tuple[int, ...]


class _Node:
    __slots__ = ("children", "groups", "order", "sources", "token")

    def __init__(self, token: int, order: int) -> None:
        self.token = token
        self.order = order  # of first arrival; a parent's is lower than its children's
        self.children: dict[int, _Node] = {}
        self.sources: list[int] = []  # in order of arrival
        self.groups: dict[int, tuple[int, _Group]] = {}  # by source: order of arrival, draws


class Pool:
    """Merges drafts; any order and any repetition of the same drafts gives the same content.

    A draft is a trie that hangs from some committed length. It is followed along what was committed
    since, and what hangs below the root is merged by path. Every source has its own bound
    `max_source_nodes`, so that none can crowd out another; what lies past it is dropped, reported.

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
    ) -> None:
        self.request = request
        self.token_ids = list(token_ids)
        self._first_length = len(self.token_ids)
        self._checks = [check_of(self.token_ids)]  # by length, from _first_length on
        self._vocab_size = vocab_size
        self._rejection = rule == "rejection"
        self._num_draws = num_draws
        self._replacement = replacement
        self._max_source_nodes = max_source_nodes
        self._root = _Node(self.token_ids[-1], 0)
        self._arrivals = 0
        self._charges: Counter[int] = Counter()  # by source
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
    def num_early(self) -> int:
        return len(self._early)

    def __len__(self) -> int:
        """Draft nodes alive."""
        return sum(1 for _ in self._walk())

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
        _forget(self._root, source)
        self._charges.pop(source, None)

    def offer(self, source: int, draft: Draft) -> Outcome:
        if draft.request != self.request:
            reason = f"expected request {self.request}, got {draft.request}"
            return Outcome(Kind.FOREIGN, reason=reason)
        if source not in self._enrolled:
            return Outcome(Kind.FOREIGN, reason=f"source {source} is not enrolled")
        reason = self._flaw(draft)
        if reason:
            return Outcome(Kind.INVALID, reason=reason)
        if draft.base_length > self.length:
            return self._hold(source, draft)
        return self._settle(source, draft)

    def commit(self, token_ids: Sequence[int]) -> list[tuple[int, Outcome]]:
        """Re-root below the new tokens; returns what became of early drafts now settled."""
        for token in token_ids:
            self.token_ids.append(token)
            self._checks.append(check_of([token], self._checks[-1]))
            self._root = self._root.children.get(token, _Node(token, 0))
        self._charges = self._count()
        due = [held for held in self._early if held[1].base_length <= self.length]
        self._early = [held for held in self._early if held[1].base_length > self.length]
        return [(source, self._settle(source, draft)) for source, draft in due]

    def select(self, max_rows: int, max_depth: int) -> Selection:
        """The tree to verify: at most `max_rows` rows, the root among them.

        `match`: nodes in order of first arrival, each source up to an even share of the rows, then
        whatever is left over: a source that floods the pool leaves room for the others.

        `rejection`: expanded nodes in order of arrival, from the root down, each with all its
        groups as they arrived, as many as fit by the fixed charge (see the class).
        """
        if self._rejection:
            return self._select_expanded(max_rows, max_depth)
        return self._select_nodes(max_rows, max_depth)

    def content(self) -> dict[tuple[int, ...], tuple[frozenset[int], dict[int, Expansion]]]:
        """By path below the root: the sources, and their draws (tokens in place of indices)."""
        found = {}
        stack: list[tuple[tuple[int, ...], _Node]] = [((), self._root)]
        while stack:
            path, node = stack.pop()
            groups = {s: Expansion(0, *group) for s, (_, group) in node.groups.items()}
            if path or groups:
                found[path] = (frozenset(node.sources), groups)
            stack += [((*path, token), child) for token, child in node.children.items()]
        return found

    def _flaw(self, draft: Draft) -> str:
        """What is wrong with a draft that is a valid message; "" if nothing is."""
        largest = max((max(e.token_ids) for e in draft.expansions), default=-1)
        largest = max(largest, max(draft.token_ids, default=-1))
        if largest >= self._vocab_size:
            return f"expected tokens below {self._vocab_size}, got {largest}"
        if draft.expansions and not self._rejection:
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
        if draft.base_length < self.length:
            edges = zip(draft.parents, draft.token_ids, strict=True)
            index_of = {edge: i for i, edge in enumerate(edges)}
            for token in self.token_ids[draft.base_length :]:
                below = index_of.get((at, token))
                if below is None:
                    return Outcome(Kind.STALE)
                at = below

        known = {at: self._root}  # message index -> node
        for i, parent in enumerate(draft.parents):
            if parent in known and (child := known[parent].children.get(draft.token_ids[i])):
                known[i] = child
        groups = {}
        for e in draft.expansions:
            drawn = tuple(draft.token_ids[child] for child in e.children)
            groups[e.parent] = _Group(drawn, e.token_ids, e.weights)
        for i in groups.keys() & known.keys():
            if source in known[i].groups and known[i].groups[source][1] != groups[i]:
                if source not in self._redrawing:
                    return Outcome(Kind.INVALID, reason="expected one drawing a node, got another")
                del groups[i]
        return self._merge(source, draft, at, known, groups)

    def _merge(
        self,
        source: int,
        draft: Draft,
        at: int,
        known: dict[int, _Node],
        groups: dict[int, _Group],
    ) -> Outcome:
        below = {at}  # the part of the message that hangs from the root
        placed = {at: self._root}
        new_nodes = dropped = 0
        adds = self._place_group(source, self._root, groups.get(at))
        for i, (parent, token) in enumerate(zip(draft.parents, draft.token_ids, strict=True)):
            if parent not in below:
                continue
            below.add(i)
            above = placed.get(parent)
            node = above and self._place_node(source, above, token)
            adds |= i not in known
            if node is None:
                dropped += 1
                continue
            new_nodes += i not in known
            placed[i] = node
            adds |= self._place_group(source, node, groups.get(i))
        if adds:
            kind = Kind.NEW if at < 0 else Kind.LATE
        elif at >= 0 and len(below) == 1 and at not in groups:
            kind = Kind.STALE
        else:
            kind = Kind.DUPLICATE
        return Outcome(kind, new_nodes, dropped)

    def _place_node(self, source: int, above: _Node, token: int) -> _Node | None:
        node = above.children.get(token)
        if node is not None and source in node.sources:
            return node
        # A drawn node is paid for with its group.
        if not _drew(above, source, token):
            if self._charges[source] >= self._max_source_nodes:
                return None
            self._charges[source] += 1
        if node is None:
            self._arrivals += 1
            node = above.children[token] = _Node(token, self._arrivals)
        node.sources.append(source)
        return node

    def _place_group(self, source: int, node: _Node, group: _Group | None) -> bool:
        """Whether the group was unknown, kept or not."""
        if group is None or source in node.groups:
            return False
        paid = sum(
            token in node.children and source in node.children[token].sources
            for token in set(group.drawn)
        )
        charge = self._num_draws - paid
        if self._charges[source] + charge <= self._max_source_nodes:
            self._charges[source] += charge
            self._arrivals += 1
            node.groups[source] = (self._arrivals, group)
        return True

    def _count(self) -> Counter[int]:
        charges: Counter[int] = Counter()
        for source in self._root.groups:
            charges[source] += self._num_draws
        for node, parent, _ in self._walk():
            for source in node.sources:
                charges[source] += not _drew(parent, source, node.token)
            for source in node.groups:
                charges[source] += self._num_draws
        return charges

    def _walk(self, max_depth: int = 1 << 30) -> Iterator[tuple[_Node, _Node, int]]:
        """Every draft node with its parent and depth, parents first."""
        level = [self._root]
        depth = 0
        while level and depth < max_depth:
            depth += 1
            below = []
            for parent in level:
                for node in parent.children.values():
                    yield node, parent, depth
                    below.append(node)
            level = below

    def _select_nodes(self, max_rows: int, max_depth: int) -> Selection:
        found = sorted(self._walk(max_depth), key=lambda entry: entry[0].order)
        if len(found) >= max_rows:
            found = _fair_share(found, self._root, max_rows - 1)
        rows = {id(self._root): 0}
        parents, depths = [-1], [0]
        for row, (node, parent, depth) in enumerate(found, start=1):
            rows[id(node)] = row
            parents.append(rows[id(parent)])
            depths.append(depth)
        nodes = [self._root] + [node for node, _, _ in found]
        return _selection(nodes, parents, depths, [])

    def _select_expanded(self, max_rows: int, max_depth: int) -> Selection:
        charge = self._num_draws * max(1, len(self._enrolled))
        nodes, parents, depths = [self._root], [-1], [0]
        expansions: list[Expansion] = []
        heap: list[tuple[int, int]] = []  # order of the first group, row

        def push(row: int) -> None:
            if nodes[row].groups and depths[row] < max_depth:
                first = min(order for order, _ in nodes[row].groups.values())
                heappush(heap, (first, row))

        push(0)
        for _ in range((max_rows - 1) // charge):
            if not heap:
                break
            _, row = heappop(heap)
            row_of: dict[int, int] = {}
            for _, group in sorted(nodes[row].groups.values()):
                for token in group.drawn:
                    if token not in row_of:
                        row_of[token] = len(nodes)
                        nodes.append(nodes[row].children[token])
                        parents.append(row)
                        depths.append(depths[row] + 1)
                children = tuple(row_of[token] for token in group.drawn)
                expansions.append(Expansion(row, children, group.token_ids, group.weights))
            for child in row_of.values():
                push(child)
        return _selection(nodes, parents, depths, expansions)


def _selection(
    nodes: list[_Node], parents: list[int], depths: list[int], expansions: list[Expansion]
) -> Selection:
    tree = HostTree(tuple(node.token for node in nodes), tuple(parents), tuple(expansions))
    sources = ((), *(tuple(node.sources) for node in nodes[1:]))
    return Selection(tree, sources, tuple(depths))


def _fair_share(
    found: list[tuple[_Node, _Node, int]], root: _Node, max_nodes: int
) -> list[tuple[_Node, _Node, int]]:
    """`max_nodes` of these, in their order and closed under parents."""
    present = {source for node, _, _ in found for source in node.sources}
    left = dict.fromkeys(present, -(-max_nodes // len(present)))
    chosen = {id(root)}
    for node, parent, _ in found:
        payer = next((s for s in node.sources if left[s] > 0), None)
        if payer is not None and id(parent) in chosen and len(chosen) <= max_nodes:
            left[payer] -= 1
            chosen.add(id(node))
    for node, parent, _ in found:
        if len(chosen) > max_nodes:
            break
        if id(parent) in chosen:
            chosen.add(id(node))
    return [entry for entry in found if id(entry[0]) in chosen]


def _drew(node: _Node, source: int, token: int) -> bool:
    return source in node.groups and token in node.groups[source][1].drawn


def _forget(root: _Node, source: int) -> None:
    stack = [root]
    while stack:
        node = stack.pop()
        node.groups.pop(source, None)
        for token, child in list(node.children.items()):
            if source in child.sources:
                child.sources.remove(source)
            if child.sources:
                stack.append(child)
            else:
                del node.children[token]
