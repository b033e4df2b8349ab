"""What the rules mean: plain torch, one row after another, the rejection rule in float64.

Both functions fill the outputs they are given, as the kernels do. They wait for the device freely.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from wanspec_kernels import noise
from wanspec_kernels.noise import Stream
from wanspec_kernels.sampling import cutoff, inverse_temperature


class _Sampling(NamedTuple):
    """One request's; temperature 0 is an inverse temperature of 0."""

    inverse_temperature: float
    top_k: int
    top_p: float
    min_p: float

    def kept(self, row: Tensor) -> Tensor | None:
        """Ids that may be chosen, ascending; None if the row ([vocab], float32) is invalid."""
        if not row.max().isfinite():
            return None
        keep = row > -torch.inf
        if self.inverse_temperature == 0:
            keep = row == row.max()
            keep[keep.nonzero()[0, 0] + 1 :] = False
        elif self.top_k or self.top_p < 1 or self.min_p > 0:
            keep &= row >= cutoff(row, *self)
        return keep.nonzero().flatten()


def masked_row(logits: Tensor, token_bitmask: Tensor | None, node: int) -> Tensor:
    """[vocab] float32, -inf at tokens that the node's bitmask forbids."""
    row = logits[node].float()
    if token_bitmask is None:
        return row
    ids = torch.arange(len(row), device=row.device)
    allowed = (token_bitmask[node][ids >> 5] >> (ids & 31)) & 1
    return row.masked_fill(allowed == 0, -torch.inf)


class _Path:
    """What one request accepts, and the token that follows."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.nodes: list[int] = []
        self.status = 0
        self.following = -1

    @property
    def node(self) -> int:
        return self.nodes[-1] if self.nodes else 0

    def accept(self, node: int, token: int) -> None:
        self.nodes.append(node)
        self.tokens.append(token)


def verify_match(
    out_token_ids: Tensor,  # [batch, max_depth + 1]
    out_num_accepted: Tensor,  # [batch]
    out_accepted_nodes: Tensor,  # [batch, max_depth]
    out_status: Tensor,  # [batch]
    logits: Tensor,  # [num_nodes, vocab]
    token_bitmask: Tensor | None,  # [num_nodes, words]
    token_ids: Tensor,  # [num_nodes]
    parents: Tensor,  # [num_nodes]
    indptr: Tensor,  # [batch + 1]
    positions: Tensor,  # [batch]
    temperature: Tensor,  # [batch]
    top_k: Tensor,  # [batch]
    top_p: Tensor,  # [batch]
    min_p: Tensor,  # [batch]
    seed: Tensor,  # [batch]
) -> None:
    tokens, parent_of, starts = token_ids.tolist(), parents.tolist(), indptr.tolist()
    samplings = _samplings(temperature, top_k, top_p, min_p)
    paths = [_Path() for _ in samplings]
    walking = [b for b in range(len(paths)) if starts[b + 1] > starts[b]]
    while walking:
        # All trees go down one level at a time, so that the noise of a level is drawn at once.
        drawn = [b for b in walking if samplings[b].inverse_temperature > 0]
        noises: dict[int, Tensor] = {}
        if drawn:
            at = torch.tensor(drawn, device=positions.device)
            levels = torch.tensor([len(paths[b].nodes) for b in drawn], device=positions.device)
            rows = noise.gumbel_row(logits.shape[1], positions[at] + levels, seed[at])
            noises = dict(zip(drawn, rows, strict=True))
        still = []
        for b in walking:
            path, sampling, start, end = paths[b], samplings[b], starts[b], starts[b + 1]
            row = masked_row(logits, token_bitmask, start + path.node)
            kept = sampling.kept(row)
            if kept is None:
                path.status = 1
                continue
            score = row * sampling.inverse_temperature
            if b in noises:
                score += noises[b]
            own = int(kept[score[kept].argmax()])
            if not score[own].isfinite():
                path.status = 1
                continue
            candidates = zip(tokens[start:end], parent_of[start:end], strict=True)
            matches = [i for i, c in enumerate(candidates) if c == (own, path.node)]
            if matches:
                path.accept(matches[0], own)
                still.append(b)
            else:
                path.following = own
        walking = still
    _write(paths, out_token_ids, out_num_accepted, out_accepted_nodes, out_status)


def verify_rejection(
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
    tokens, starts, draw_starts = token_ids.tolist(), indptr.tolist(), draw_indptr.tolist()
    children, rows, replace = draw_children.tolist(), draw_rows.tolist(), replacement.tolist()
    most_draws = max((b - a for a, b in pairwise(draw_starts)), default=0)
    depths = torch.arange(out_token_ids.shape[1], device=logits.device)
    draw_indices = torch.arange(most_draws, device=logits.device)
    vocab = logits.shape[1]
    samplings = _samplings(temperature, top_k, top_p, min_p)
    paths = []
    for b, sampling in enumerate(samplings):
        path = _Path()
        paths.append(path)
        start = starts[b]
        position = positions[b] + depths[:, None]
        coins = noise.uniform(draw_indices, position, seed[b], Stream.COIN).tolist()
        walking = starts[b + 1] > start
        while walking:
            node, depth = start + path.node, len(path.nodes)
            row = masked_row(logits, token_bitmask, node)
            kept = sampling.kept(row)
            if kept is None:
                path.status = 1
                break
            target = torch.zeros(vocab, dtype=torch.float64, device=logits.device)
            target[kept] = (row[kept].double() * sampling.inverse_temperature).softmax(0)
            residual = target
            source = -1
            earlier: list[int] = []
            walking = False
            for i, draw in enumerate(range(draw_starts[node], draw_starts[node + 1])):
                if rows[draw] != source:
                    source, earlier = rows[draw], []
                token = tokens[start + children[draw]]
                draft = _draft(vocab, draft_token_ids[source], draft_weights[source], earlier)
                if token < vocab and coins[depth][i] * draft[token] < residual[token]:
                    path.accept(children[draw], token)
                    walking = True
                    break
                residual = (residual - draft).clamp(min=0)
                # Rounding alone can leave nothing; any token of the target's will do then.
                residual = residual / residual.sum() if residual.any() else target
                if not replace[source]:
                    earlier.append(token)
            if not walking:
                gumbel = noise.gumbel_row(
                    vocab, positions[b] + depth, seed[b], Stream.RESIDUAL
                ).double()
                path.following = int((residual.log() + gumbel).argmax())
    _write(paths, out_token_ids, out_num_accepted, out_accepted_nodes, out_status)


def _draft(vocab: int, token_ids: Tensor, weights: Tensor, earlier: list[int]) -> Tensor:
    """A source's distribution without its earlier tokens, [vocab] float64."""
    weights = weights.double().masked_fill(torch.isin(token_ids, token_ids.new_tensor(earlier)), 0)
    inside = (token_ids >= 0) & (token_ids < vocab)
    dense = torch.zeros(vocab, dtype=torch.float64, device=weights.device)
    dense[token_ids[inside].long()] = (weights / weights.sum())[inside]
    return dense


def _samplings(temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> list[_Sampling]:
    columns = (
        inverse_temperature(temperature).tolist(),
        top_k.tolist(),
        top_p.tolist(),
        min_p.tolist(),
    )
    return [_Sampling(*values) for values in zip(*columns, strict=True)]


def _write(
    paths: list[_Path],
    out_token_ids: Tensor,
    out_num_accepted: Tensor,
    out_accepted_nodes: Tensor,
    out_status: Tensor,
) -> None:
    max_depth = out_accepted_nodes.shape[1]

    def padded(values: list[int], length: int) -> list[int]:
        return values + [-1] * (length - len(values))

    def fill(out: Tensor, values: list[int] | list[list[int]]) -> None:
        out.copy_(torch.tensor(values, dtype=torch.int32).view(out.shape))

    fill(out_token_ids, [padded([*p.tokens, p.following], max_depth + 1) for p in paths])
    fill(out_num_accepted, [len(p.nodes) for p in paths])
    fill(out_accepted_nodes, [padded(p.nodes, max_depth) for p in paths])
    fill(out_status, [p.status for p in paths])
