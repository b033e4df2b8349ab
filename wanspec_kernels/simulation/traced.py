"""A trace played back: the target's text, and what a drafter would propose anywhere."""

from collections.abc import Sequence
from random import Random

import numpy as np

from drafter.candidates import Candidates
from drafter.key_values import KeyValueStore
from drafter.passes import Drafting
from drafter.plan import Plan
from wanspec_kernels.simulation.trace import NUM_TOP, Trace
from wanspec_kernels.tree import HostTree
from wanspec_kernels.wire.confidence import CLAIMED

MAX_OFF_DEPTH = 3  # off-path distributions of deeper nodes are taken from this depth
PROMPT = (0,)
MAX_POSITIONS = 1 << 30


class TracedText:
    """One request's text: recorded texts in an order that the seed chooses, one after another.

    A node on the path has the recorded distribution, with the target's token at its recorded rank;
    one off the path has a recorded off-path distribution, always the same for the same node.
    """

    def __init__(self, trace: Trace, length: int, seed: int) -> None:
        order = Random(seed)
        rows: list[int] = []
        while len(rows) < length:
            text = order.randrange(len(trace.text_indptr) - 1)
            rows += range(int(trace.text_indptr[text]), int(trace.text_indptr[text + 1]))
        self._rows = rows[:length]
        self._trace = trace
        self._vocab_size = trace.vocab_size
        self.token_ids: list[int] = [int(trace.token_ids[row]) for row in self._rows]
        depths = np.minimum(trace.off_depths, MAX_OFF_DEPTH)
        self._off = [np.flatnonzero(depths == d) for d in range(MAX_OFF_DEPTH + 1)]
        everything = np.arange(len(depths))
        self._off = [rows if len(rows) else everything for rows in self._off]

    def candidates(self, index: int, path: tuple[int, ...]) -> Candidates:
        """After the text's first `index` tokens and then `path`."""
        on = 0
        while on < len(path) and self._token(index + on) == path[on]:
            on += 1
        left_at = index + on
        if on < len(path):
            return self._off_path(hash((left_at, path[on:])), len(path) - on)
        if left_at >= len(self._rows):
            return Candidates((), ())
        row = self._rows[left_at]
        token, rank = self.token_ids[left_at], int(self._trace.ranks[row])
        others = [(token + 1 + k) % self._vocab_size for k in range(NUM_TOP)]
        if rank < NUM_TOP:
            others[rank] = token
        return Candidates(tuple(others), _probabilities(self._trace.codes[row]))

    def verify(self, length: int, tree: HostTree) -> tuple[list[int], list[int]]:
        """As `TargetModel.verify` after `length` of the text's tokens."""
        rows = {
            (p, t): i for i, (p, t) in enumerate(zip(tree.parents, tree.token_ids, strict=True))
        }
        token_ids: list[int] = []
        accepted: list[int] = []
        at = 0
        while True:
            token = self.token_ids[length + len(accepted)]
            token_ids.append(token)
            at = rows.get((at, token), -1)
            if at < 0:
                return token_ids, accepted
            accepted.append(at)

    def _token(self, index: int) -> int:
        return self.token_ids[index] if index < len(self.token_ids) else -1

    def _off_path(self, key: int, depth: int) -> Candidates:
        rows = self._off[min(depth, MAX_OFF_DEPTH)]
        row = int(rows[key % len(rows)])
        first = (key >> 20) % self._vocab_size
        tokens = tuple((first + k) % self._vocab_size for k in range(NUM_TOP))
        return Candidates(tokens, _probabilities(self._trace.off_codes[row]))


class TracedProposer:
    """A drafter's model, out of traces; `texts` has each open request's."""

    max_positions = MAX_POSITIONS

    def __init__(self, vocab_size: int, texts: dict[int, TracedText], context: int = 0) -> None:
        """Each text has so many tokens of `context` before it, which cost time and say nothing."""
        self.vocab_size = vocab_size
        self.rows = 0  # computed
        self.context = 0  # attended to, of all passes
        self.texts = texts
        self._context = context

    def new_store(self) -> KeyValueStore:
        return KeyValueStore()

    def propose(self, planned: Sequence[tuple[Drafting, Plan]]) -> list[Candidates]:
        found = []
        for drafting, plan in planned:
            self.rows += len(plan.slots)
            growth = drafting.growth
            text = self.texts[growth.request.request]
            index = growth.length - len(PROMPT)
            self.context += self._context + growth.length
            most = max(growth.shape.max_children, growth.shape.max_root_children)
            for path in growth.planned_paths:
                row = text.candidates(index, path)
                found.append(Candidates(row.token_ids[:most], row.probabilities[:most]))
        return found


_CACHE: dict[bytes, tuple[float, ...]] = {}


def _probabilities(codes: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> tuple[float, ...]:
    key = codes.tobytes()
    if key not in _CACHE:
        _CACHE[key] = tuple(CLAIMED[code] for code in key)
    return _CACHE[key]
