"""Selection: the part of a pool that one target pass verifies."""

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush

from wanspec_kernels.drafts.pool_node import PoolNode
from wanspec_kernels.drafts.worth import LEAST_TRUST, Believed
from wanspec_kernels.tree import Expansion, HostTree

# Of a row that is verified at all: what a source claims that has lost all trust is none.
LEAST_PROBABILITY = LEAST_TRUST


@dataclass(frozen=True, slots=True)
class Selection:
    """A tree for the target, who brought each of its rows, and what it promises."""

    tree: HostTree
    sources: tuple[tuple[int, ...], ...]  # of each row, first to bring it first; none at the root
    depths: tuple[int, ...]  # of each row
    probabilities: tuple[float, ...]  # of each row to be on the target's path; the root's is 1
    # What is to be found out below each row, as a share of what is where nothing is known: 1 there,
    # less where sources of little credit drafted, 0 where home did or nothing could be verified.
    openness: tuple[float, ...]

    @property
    def depth(self) -> int:
        return max(self.depths)

    @property
    def expected_tokens(self) -> float:
        """Accepted drafts and the one extra token."""
        return sum(self.probabilities)

    @property
    def open_mass(self) -> float:
        """Probability that the path leaves the tree where nothing is known further down."""
        return sum([p * share for p, share in zip(self.probabilities, self.openness, strict=True)])

    def open_mass_of(self, source: int) -> float:
        """The part of it at rows that this source brought, and may be growing."""
        rows = zip(self.probabilities, self.openness, self.sources, strict=True)
        return sum([p * share for p, share, sources in rows if source in sources])

    def depth_of(self, source: int) -> int:
        """How deep this source's own rows reach."""
        rows = zip(self.depths, self.sources, strict=True)
        return max((d for d, sources in rows if source in sources), default=0)


class LikelyTree:
    """A tree that rows are added to, as long as somebody finds them worth it.

    The children of one source share a probability of 1 at most, so that one which claims much for
    many is believed little for each; and a path is trusted as far as the least trusted source that
    it needs.
    """

    def __init__(self, root: PoolNode, sources: Mapping[int, Believed], max_depth: int) -> None:
        self.nodes = [root]
        self.probabilities = [1.0]  # of each row to be on the target's path
        self._parents, self._depths = [-1], [0]
        self._trusts = [1.0]  # in the sources of each row's path: its probability is the rest's
        self._sources = sources
        self._max_depth = max_depth

    def below(self, row: int) -> list[tuple[float, float, PoolNode]]:
        """What may be added below a row: its probability, the trust in its path, and the node."""
        if self._depths[row] >= self._max_depth:
            return []
        trust = self._trusts[row]
        above = self.probabilities[row] / trust
        found = []
        for child, share, child_trust in shares_of(self.nodes[row], self._sources, trust):
            probability = above * share * child_trust
            if probability >= LEAST_PROBABILITY:
                found.append((probability, child_trust, child))
        return found

    def add(self, parent: int, probability: float, trust: float, node: PoolNode) -> int:
        """Add what `below` a row has named; returns the new row."""
        self.nodes.append(node)
        self.probabilities.append(probability)
        self._parents.append(parent)
        self._depths.append(self._depths[parent] + 1)
        self._trusts.append(trust)
        return len(self.nodes) - 1

    def selection(self, count: int) -> Selection:
        """The first rows, the root among them."""
        nodes, depths = self.nodes[:count], self._depths[:count]
        return Selection(
            HostTree(tuple([node.token for node in nodes]), tuple(self._parents[:count])),
            tuple([tuple(node.sources) for node in nodes]),
            tuple(depths),
            tuple(self.probabilities[:count]),
            tuple(
                [
                    1.0 - credit_below(node, self._sources) if depth < self._max_depth else 0.0
                    for node, depth in zip(nodes, depths, strict=True)
                ]
            ),
        )


def select_likeliest(
    root: PoolNode, sources: Mapping[int, Believed], max_rows: int, max_depth: int
) -> Selection:
    """Rows by the probability of being on the path: each is the one that promises most."""
    tree = LikelyTree(root, sources, max_depth)
    # -probability, order, parent's row, trust
    heap: list[tuple[float, int, int, float, PoolNode]] = []
    row = 0
    while True:
        for probability, trust, node in tree.below(row):
            heappush(heap, (-probability, node.order, row, trust, node))
        if not heap or len(tree.nodes) >= max_rows:
            return tree.selection(max_rows)
        minus_probability, _, parent, trust, node = heappop(heap)
        row = tree.add(parent, -minus_probability, trust, node)


def select_expanded(
    root: PoolNode,
    charge: int,
    acceptance: float,
    max_rows: int,
    max_depth: int,
    *,
    replacement: bool = False,
) -> Selection:
    """Expanded nodes in order of arrival, each with all its draws, as many as fit by the charge.

    `charge` is the rows that an expanded node is counted for, whatever its draws fell on, and
    `acceptance` that of a level: what the probabilities rest on, which decide nothing here.
    `replacement` is how the draws were made.
    """
    nodes, parents, depths, probabilities = [root], [-1], [0], [1.0]
    expansions: list[Expansion] = []
    heap: list[tuple[int, int]] = []  # order of the first group, row
    open_rows = {0} if max_depth > 0 else set()

    def push(row: int) -> None:
        if nodes[row].groups and depths[row] < max_depth:
            first = min(order for order, _ in nodes[row].groups.values())
            heappush(heap, (first, row))

    push(0)
    for _ in range((max_rows - 1) // charge):
        if not heap:
            break
        _, row = heappop(heap)
        open_rows.discard(row)
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
            probabilities.append(probabilities[row] * acceptance / len(row_of))
            if depths[child] < max_depth:
                open_rows.add(child)
            push(child)
    return Selection(
        HostTree(
            tuple(node.token for node in nodes), tuple(parents), tuple(expansions), replacement
        ),
        tuple(tuple(node.sources) for node in nodes),
        tuple(depths),
        tuple(probabilities),
        tuple([float(row in open_rows) for row in range(len(nodes))]),
    )


def credit_below(node: PoolNode, sources: Mapping[int, Believed]) -> float:
    """The most credit of those who drafted below a node; 0 where nobody did."""
    found = 0.0
    for child in node.children.values():
        for source in child.sources:
            found = max(found, sources[source].credit)
    return found


def shares_of(
    node: PoolNode, sources: Mapping[int, Believed], trust: float
) -> list[tuple[PoolNode, float, float]]:
    """Each child with its probability given the node, and the trust in the path down to it.

    That of the source which makes most of it, for a path that is trusted so far as to `trust`.
    """
    children = node.children.values()
    claims = [
        [(source, sources[source].table[code]) for source, code in child.sources.items()]
        for child in children
    ]
    totals: dict[int, float] = {}
    for claim in claims:
        for source, p in claim:
            totals[source] = totals.get(source, 0.0) + p
    trusts = {source: min(trust, sources[source].trust) for source in totals}
    if len(totals) == 1:  # as often
        ((source, total),) = totals.items()
        scale, only = 1.0 / max(1.0, total), trusts[source]
        return [
            (child, claim[0][1] * scale, only)
            for child, claim in zip(children, claims, strict=True)
        ]
    found = []
    for child, claim in zip(children, claims, strict=True):
        best, share, by = -1.0, 0.0, 0.0
        for source, p in claim:
            p /= max(1.0, totals[source])
            if p * trusts[source] > best:
                best, share, by = p * trusts[source], p, trusts[source]
        found.append((child, share, by))
    return found
