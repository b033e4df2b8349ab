"""Which rows of which request are worth a place in the next pass."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TypeAlias

from wanspec_kernels.control.pass_times import PassTimes
from wanspec_kernels.control.tuning import TUNING, Tuning
from wanspec_kernels.drafts.pool import Pool
from wanspec_kernels.drafts.pool_node import PoolNode
from wanspec_kernels.drafts.selection import LikelyTree, Selection


@dataclass(frozen=True, slots=True)
class Candidate:
    """One request that takes part, and how large its tree may get."""

    pool: Pool
    max_rows: int
    max_depth: int
    expected: Sequence[float] = ()  # `rejection`: tokens that each expansion in turn is worth


@dataclass(frozen=True, slots=True)
class Chosen:
    """A tree for each candidate, and what the pass is expected to bring and to take."""

    selections: tuple[Selection, ...]
    tokens: float
    ms: float
    num_rows: int  # those of other parts included
    is_full: bool  # More rows would have had no room, whatever they are worth.


_Entry: TypeAlias = tuple[float, int, int, int, float, PoolNode | None]
"""-worth of a row, order of arrival, number of the candidate, parent's row, trust, node.

No node: the next expansion of a candidate under `rejection`.
"""


class _Growing:
    """One candidate's tree, and what may be added to it."""

    def __init__(self, candidate: Candidate, number: int) -> None:
        self.candidate, self._number = candidate, number
        pool = candidate.pool
        self._tree = LikelyTree(pool.root, pool.believed(), candidate.max_depth)
        self._num_expansions = 0

    @property
    def num_rows(self) -> int:
        return len(self._tree.nodes) + self._num_expansions * self.candidate.pool.charge

    def begin(self, heap: list[_Entry]) -> None:
        if self.candidate.pool.rejection:
            self._push_expansion(heap)
        else:
            self._push_below(heap, 0)

    def take(self, heap: list[_Entry], entry: _Entry) -> None:
        minus_worth, _, _, parent, trust, node = entry
        if node is None:
            self._num_expansions += 1
            self._push_expansion(heap)
        else:
            self._push_below(heap, self._tree.add(parent, -minus_worth, trust, node))

    def selection(self, count: int) -> Selection:
        """The first `count` rows, or expansions, that were taken."""
        candidate = self.candidate
        if candidate.pool.rejection:
            max_rows = 1 + count * candidate.pool.charge
            return candidate.pool.select(max_rows, candidate.max_depth)
        return self._tree.selection(1 + count)

    def _push_below(self, heap: list[_Entry], row: int) -> None:
        for worth, trust, node in self._tree.below(row):
            heappush(heap, (-worth, node.order, self._number, row, trust, node))

    def _push_expansion(self, heap: list[_Entry]) -> None:
        """Only its place in the order says what it is worth, and nothing that was drawn."""
        k, pool = self._num_expansions, self.candidate.pool
        if k < len(self.candidate.expected) and self.candidate.max_depth > 0:
            worth = self.candidate.expected[k] / pool.charge
            heappush(heap, (-worth, k, self._number, 0, 1.0, None))


def choose_rows(
    candidates: Sequence[Candidate],
    times: PassTimes,
    *,
    tokens_per_ms: float,
    max_rows: int,
    other_rows: int = 0,
    context: int = 0,
    tuning: Tuning = TUNING,
) -> Chosen:
    """The rows that bring the most tokens over what their time is worth.

    Every candidate has its root. One heap over all pools gives the row likeliest to be on its
    request's path, again and again; of all the numbers of rows passed on the way, that one is taken
    at which the tokens expected exceed ``tokens_per_ms`` times the pass's time by most. So a row is
    taken if it is worth more than the time that it adds, alone or with those after it: a pass's
    time has steps.

    Under `rejection` whether a draw takes part may not depend on its value. Such a request's
    expansions are taken in order of arrival, each charged a fixed number of rows and worth what the
    expansion of that number was worth in earlier passes.

    Args:
        times: what passes take.
        tokens_per_ms: what the batch decodes on average.
        max_rows: of the pass, those of other parts included.
        other_rows: that ride along, such as a prompt's.
        context: tokens that the pass attends to.
    """
    growing = [_Growing(candidate, number) for number, candidate in enumerate(candidates)]
    heap: list[_Entry] = []
    for tree in growing:
        tree.begin(heap)
    rows = other_rows + len(candidates)
    tokens = best_tokens = float(len(candidates))
    best_value = tokens - tokens_per_ms * times.ms(rows, context)
    best_rows = rows
    taken: list[int] = []  # whose each row or expansion was
    num_best = 0
    edge = rows  # Up to so many rows a pass takes no longer.
    while heap and rows < max_rows:
        entry = heappop(heap)
        worth, number = -entry[0], entry[2]
        tree = growing[number]
        charge = 1 if entry[-1] is not None else tree.candidate.pool.charge
        if tree.num_rows + charge > tree.candidate.max_rows or rows + charge > max_rows:
            continue
        if worth < tuning.least_row_worth:
            break
        if rows + charge > edge:
            ahead = min(max_rows, rows + tuning.rows_ahead)
            gain = _best_gain(times, tokens_per_ms, rows, ahead, worth)
            if tokens + gain - tokens_per_ms * times.ms(rows, context) <= best_value:
                break
            edge = times.sizes[times.size_of(rows + charge)]
        rows += charge
        tokens += worth * charge
        taken.append(number)
        tree.take(heap, entry)
        value = tokens - tokens_per_ms * times.ms(rows, context)
        if value > best_value:
            best_value, best_tokens, best_rows, num_best = value, tokens, rows, len(taken)
    counts = Counter(taken[:num_best])
    return Chosen(
        tuple([tree.selection(counts[number]) for number, tree in enumerate(growing)]),
        best_tokens,
        times.ms(best_rows, context),
        best_rows,
        is_full=best_rows >= max_rows,
    )


def _best_gain(
    times: PassTimes, tokens_per_ms: float, rows: int, max_rows: int, worth: float
) -> float:
    """The most that more rows can bring over their time, if none is worth more than `worth`."""
    steps = times.steps()
    now_ms = steps[times.size_of(rows)]
    best = 0.0
    for size in range(times.size_of(rows + 1), times.size_of(max_rows) + 1):
        more = min(times.sizes[size], max_rows) - rows
        best = max(best, worth * more - tokens_per_ms * (steps[size] - now_ms))
    return best
