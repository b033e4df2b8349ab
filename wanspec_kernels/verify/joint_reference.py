"""What `block` and `traversal` share: a tree with its distributions, and the loop over a batch.

Plain torch, float64. It waits for the device freely.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from wanspec_kernels import noise
from wanspec_kernels.noise import Stream
from wanspec_kernels.verify.reference import (
    _draft,
    _Path,
    _Sampling,
    _samplings,
    _write,
    masked_row,
)

Accept = Callable[[int, float], bool]
"""Whether a node is accepted, given the probability of it; each node is asked about once."""


class JointTree:
    """One request's tree with the distributions at its nodes; `node` counts within the tree."""

    def __init__(
        self,
        start: int,
        sampling: _Sampling,
        logits: Tensor,  # [num_nodes, vocab]
        token_bitmask: Tensor | None,  # [num_nodes, words]
        token_ids: Tensor,  # [num_nodes]
        draw_indptr: Tensor,  # [num_nodes + 1]
        draw_children: Tensor,  # [num_draws]
        draw_rows: Tensor,  # [num_draws]
        draft_token_ids: Tensor,  # [num_rows, support]
        draft_weights: Tensor,  # [num_rows, support]
        replacement: Tensor,  # [num_rows]
    ) -> None:
        self.vocab = logits.shape[1]
        self._start = start
        self._sampling = sampling
        self._logits = logits
        self._token_bitmask = token_bitmask
        self._token_ids = token_ids
        self._draws = (draw_indptr, draw_children, draw_rows)
        self._tables = (draft_token_ids, draft_weights, replacement)

    def token(self, node: int) -> int:
        return int(self._token_ids[self._start + node])

    def target(self, node: int) -> Tensor | None:
        """[vocab] float64, filtered; None if the node's row is invalid."""
        row = masked_row(self._logits, self._token_bitmask, self._start + node)
        kept = self._sampling.kept(row)
        if kept is None:
            return None
        target = torch.zeros(self.vocab, dtype=torch.float64, device=row.device)
        target[kept] = (row[kept].double() * self._sampling.inverse_temperature).softmax(0)
        return target

    def num_draws(self, node: int) -> int:
        indptr = self._draws[0]
        return int(indptr[self._start + node + 1] - indptr[self._start + node])

    def draws(self, node: int) -> Iterator[tuple[int, Tensor]]:
        """Each draw's child and what it was drawn from ([vocab] float64), in order.

        Of a source without replacement a later distribution excludes the earlier tokens. What a
        source gave to ids beyond the vocabulary is missing from the sum.
        """
        indptr, children, rows = self._draws
        token_ids, weights, replacement = self._tables
        source = -1
        earlier: list[int] = []
        first, last = indptr[self._start + node : self._start + node + 2].tolist()
        for draw in range(first, last):
            if int(rows[draw]) != source:
                source, earlier = int(rows[draw]), []
            child = int(children[draw])
            yield child, _draft(self.vocab, token_ids[source], weights[source], earlier)
            if not replacement[source]:
                earlier.append(self.token(child))


Walk = Callable[[JointTree, Accept], tuple[list[int], Tensor | None]]
"""Accepted nodes, and what the next token is drawn from ([vocab]; None if the row is invalid)."""


def child_acceptance(acceptance: float, target: Tensor, draft: Tensor, token: int) -> float:
    """``min(1, acceptance * target(token) / draft(token))``; 0 beyond the vocabulary."""
    if token >= len(target):
        return 0.0
    # The product of `remainder`: a draw that can be rejected leaves exactly nothing of its token.
    most, drawn = acceptance * float(target[token]), float(draft[token])
    return most / drawn if most < drawn else float(most > 0)


def remainder(acceptance: float, target: Tensor, draft: Tensor) -> tuple[float, Tensor]:
    """Acceptance and target of a node one of whose draws was rejected.

    With ``left = max(acceptance * target - draft, 0)`` and S its sum: ``S / (S + 1 - acceptance)``
    and ``left / S``. The draw was rejected with probability ``S + 1 - acceptance``.
    """
    left = (acceptance * target - draft).clamp(min=0)
    mass = float(left.sum())
    if mass == 0:
        # At acceptance 1 rounding alone comes here; any token of the target's will do then.
        return float(acceptance == 1), target
    return mass / (mass + (1 - acceptance)), left / mass


def verify(
    walk: Walk,
    out_token_ids: Tensor,  # [batch, max_depth + 1]
    out_num_accepted: Tensor,  # [batch]
    out_accepted_nodes: Tensor,  # [batch, max_depth]
    out_status: Tensor,  # [batch]
    logits: Tensor,  # [num_nodes, vocab]
    token_bitmask: Tensor | None,  # [num_nodes, words]
    token_ids: Tensor,  # [num_nodes]
    indptr: Tensor,  # [batch + 1]
    draw_indptr: Tensor,  # [num_nodes + 1]
    draw_children: Tensor,  # [num_draws]
    draw_rows: Tensor,  # [num_draws]
    draft_token_ids: Tensor,  # [num_rows, support]
    draft_weights: Tensor,  # [num_rows, support]
    replacement: Tensor,  # [num_rows]
    positions: Tensor,  # [batch]
    temperature: Tensor,  # [batch]
    top_k: Tensor,  # [batch]
    top_p: Tensor,  # [batch]
    min_p: Tensor,  # [batch]
    seed: Tensor,  # [batch]
) -> None:
    """Fill the outputs with what `walk` accepts of each tree.

    Node i's coin is ``uniform(i, positions[b], seed[b], COIN)``. All coins of a call are those of
    one position, the first that it decides: a coin that rejected a deep node must not be met again
    when the next call, further on, verifies a node at the same depth of the text. The token that
    follows n accepted drafts takes the RESIDUAL noise of ``positions[b] + n``.
    """
    starts = indptr.tolist()
    paths = []
    for b, sampling in enumerate(_samplings(temperature, top_k, top_p, min_p)):
        path = _Path()
        paths.append(path)
        num_nodes = starts[b + 1] - starts[b]
        if num_nodes == 0:
            continue
        tree = JointTree(
            starts[b], sampling, logits, token_bitmask, token_ids, draw_indptr, draw_children,
            draw_rows, draft_token_ids, draft_weights, replacement,
        )  # fmt: skip
        nodes = torch.arange(num_nodes, device=logits.device)
        coins = noise.uniform(nodes, positions[b], seed[b], Stream.COIN).tolist()
        accepted, target = walk(tree, lambda node, p, coins=coins: coins[node] < p)  # type: ignore[misc]
        for node in accepted:
            path.accept(node, tree.token(node))
        if target is None:
            path.status = 1
            continue
        position = positions[b] + len(accepted)
        gumbel = noise.gumbel_row(tree.vocab, position, seed[b], Stream.RESIDUAL).double()
        path.following = int((target.log() + gumbel).argmax())
    _write(paths, out_token_ids, out_num_accepted, out_accepted_nodes, out_status)
