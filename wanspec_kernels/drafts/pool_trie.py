"""PoolTrie: what a pool holds below the committed text, and whom it is charged to."""

from collections import Counter

from wanspec_kernels.drafts.outcome import Kind, Outcome
from wanspec_kernels.drafts.pool_node import Group, PoolNode
from wanspec_kernels.wire import Draft
from wanspec_kernels.wire.confidence import UNKNOWN

_DUPLICATE, STALE = Outcome(Kind.DUPLICATE), Outcome(Kind.STALE)
_DROPPED = PoolNode(-1, -1)  # stands for a node past the bound, and for what hangs below it


class PoolTrie:
    """Drafts merged by path. Every source has its own bound, `max_source_nodes`.

    A message hangs from the root by its own index `at` of it; -1: from its base.
    """

    def __init__(self, token: int, max_source_nodes: int, num_draws: int) -> None:
        self.root = PoolNode(token, 0)
        self._max_source_nodes = max_source_nodes
        self._num_draws = num_draws  # what a group of draws is charged
        self._arrivals = 0
        self._charges: Counter[int] = Counter()  # by source; too high, unless they are exact
        self._charges_are_exact = True
        # Claims that came since a pass began, and the source's claim at that node before, if any.
        self._late: dict[tuple[PoolNode, int], int | None] | None = None  # None: no pass runs

    def descend(self, token: int) -> None:
        """Re-root below a token, and forget all else."""
        child = self.root.children.get(token)
        self.root = child if child is not None else PoolNode(token, 0)
        self._charges_are_exact = False

    def pass_begins(self) -> None:
        """From now on until `pass_ends`, remember what comes too late to be verified."""
        self._late = {}

    def pass_ends(self) -> None:
        self._late = None

    def codes_in_time(self, node: PoolNode) -> dict[int, int]:
        """By source, what it said of a node before the pass under way began."""
        if not self._late:
            return node.sources
        found = {}
        for source, code in node.sources.items():
            before = self._late.get((node, source), code)
            if before is not None:
                found[source] = before
        return found

    def forget(self, source: int) -> None:
        """As if it had never drafted anything."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            node.groups.pop(source, None)
            for token, child in list(node.children.items()):
                child.sources.pop(source, None)
                if child.sources:
                    stack.append(child)
                else:
                    del node.children[token]
        self._charges.pop(source, None)

    def merge(self, source: int, draft: Draft, at: int) -> Outcome:
        """`match`: nodes only. Written for speed: this is where a busy verifier's time goes."""
        codes = draft.confidences or bytes([UNKNOWN]) * len(draft.token_ids)
        # By index in the message, one further: the node, or None where it is not below the root.
        placed: list[PoolNode | None] = [None] * (at + 2)
        placed[at + 1] = self.root
        start = at + 1
        room = self._max_source_nodes - self._charges[source]
        new_nodes = new_claims = dropped = below = 0
        adds = False
        late = self._late
        for token, parent, code in zip(
            draft.token_ids[start:], draft.parents[start:], codes[start:], strict=True
        ):
            above = placed[parent + 1] if parent >= at else None
            if above is None:
                placed.append(None)
                continue
            below += 1
            node = above.children.get(token)
            if node is None:
                adds = True
            elif (known := node.sources.get(source)) is not None:
                if code < known:
                    if late is not None:
                        late.setdefault((node, source), known)
                    node.sources[source] = code
                placed.append(node)
                continue
            if room <= 0 and not self._charges_are_exact:
                self._count()
                room = self._max_source_nodes - self._charges[source]
            if room <= 0 or above is _DROPPED:
                placed.append(_DROPPED)
                dropped += 1
                continue
            room -= 1
            self._charges[source] += 1
            if node is None:
                self._arrivals += 1
                node = above.add_child(token, self._arrivals)
                new_nodes += 1
            if late is not None:
                late[node, source] = None
            node.sources[source] = code
            new_claims += 1
            placed.append(node)
        if adds:
            kind = Kind.NEW if at < 0 else Kind.LATE
            return Outcome(kind, new_nodes, dropped, new_claims=new_claims)
        if at >= 0 and not below:
            return STALE
        if dropped or new_claims:
            return Outcome(Kind.DUPLICATE, 0, dropped, new_claims=new_claims)
        return _DUPLICATE

    def merge_draws(self, source: int, draft: Draft, at: int, *, redraws: bool) -> Outcome:
        """`rejection`: nodes and their draws; who `redraws` may draw otherwise than before."""
        known = {at: self.root}  # message index -> node
        for i, parent in enumerate(draft.parents):
            if parent in known and (child := known[parent].children.get(draft.token_ids[i])):
                known[i] = child
        groups = {}
        for e in draft.expansions:
            drawn = tuple(draft.token_ids[child] for child in e.children)
            groups[e.parent] = Group(drawn, e.token_ids, e.weights)
        for i in groups.keys() & known.keys():
            if source in known[i].groups and known[i].groups[source][1] != groups[i]:
                if not redraws:
                    return Outcome(Kind.INVALID, reason="expected one drawing a node, got another")
                del groups[i]
        if not self._charges_are_exact:
            self._count()
        return self._place(source, draft, at, known, groups)

    def _place(
        self,
        source: int,
        draft: Draft,
        at: int,
        known: dict[int, PoolNode],
        groups: dict[int, Group],
    ) -> Outcome:
        below = {at}  # the part of the message that hangs from the root
        placed = {at: self.root}
        new_nodes = dropped = 0
        adds = self._place_group(source, self.root, groups.get(at))
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
        return Outcome(kind, new_nodes, dropped, new_claims=int(adds))

    def _place_node(self, source: int, above: PoolNode, token: int) -> PoolNode | None:
        node = above.children.get(token)
        if node is not None and source in node.sources:
            return node
        # A drawn node is paid for with its group.
        if not above.drew(source, token):
            if self._charges[source] >= self._max_source_nodes:
                return None
            self._charges[source] += 1
        if node is None:
            self._arrivals += 1
            node = above.add_child(token, self._arrivals)
        node.sources[source] = UNKNOWN
        return node

    def _place_group(self, source: int, node: PoolNode, group: Group | None) -> bool:
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
            node.add_group(source, self._arrivals, group)
        return True

    def _count(self) -> None:
        """Make the charges exact; a commit only forgets, so until then they are too high."""
        charges: Counter[int] = Counter()
        for source in self.root.groups:
            charges[source] += self._num_draws
        for node, parent in self.root.below():
            for source in node.sources:
                charges[source] += not parent.drew(source, node.token)
            for source in node.groups:
                charges[source] += self._num_draws
        self._charges, self._charges_are_exact = charges, True
