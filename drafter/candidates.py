"""From logits to candidates: what the target is likely to say next."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wanspec_kernels.noise import gumbel
from wanspec_kernels.wire.sampling import Sampling

NOISE_ROWS = 256  # of one token's noise over the vocabulary, kept
NUCLEUS = 512  # tokens among which top_p looks for its last


@dataclass(frozen=True)
class RowSampling:
    """How the token after one node will be sampled; `position` is that token's absolute index."""

    position: int
    sampling: Sampling
    count: int  # candidates wanted

    @property
    def temperature(self) -> float:
        return self.sampling.temperature

    @property
    def noise_key(self) -> tuple[int, int] | None:
        """Seed and position of the target's noise, if the drafter was told and it decides."""
        seed = self.sampling.shared_seed
        return None if seed is None or self.temperature == 0 else (seed, self.position)

    @property
    def filters(self) -> tuple[int, float, float] | None:
        """Top_k, top_p and min_p; None if none of them is on."""
        s = self.sampling
        if s.temperature == 0 or not (s.top_k or s.top_p < 1 or s.min_p > 0):
            return None
        return s.top_k, s.top_p, s.min_p


@dataclass(frozen=True)
class Candidates:
    """The likeliest tokens of one row, best first; empty if the row was not finite.

    Where filters leave fewer than were wanted, the rest have probability 0.
    """

    token_ids: tuple[int, ...]
    probabilities: tuple[float, ...]


class Ranker:
    """Turns rows of logits into candidates, all rows of a pass at once."""

    def __init__(self) -> None:
        self._noise: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    @torch.inference_mode()
    def rank(self, logits: Tensor, rows: Sequence[RowSampling]) -> list[Candidates]:
        """Candidates of each row of `logits` ([len(rows), vocab] float32).

        At temperature 0 the probabilities are the softmax. Where the target's noise is known, they
        are the softmax of `logit / T + noise`: the largest is what the target samples if it agrees
        with the drafter, and the gap to the next says how far it may disagree. Otherwise they are
        the filtered softmax at T.
        """
        if not rows:
            return []
        scores = logits
        if any(row.temperature > 0 for row in rows):
            inverse = [1.0 / row.temperature if row.temperature > 0 else 1.0 for row in rows]
            scores = logits * torch.tensor(inverse, device=logits.device)[:, None]
            _filter_rows(scores, rows)
            self._add_noise(scores, rows)
        count = min(max(row.count for row in rows), logits.shape[1])
        best, tokens = scores.topk(count)
        probabilities = (best - scores.logsumexp(1, keepdim=True)).exp()
        # Both in one transfer: token ids are exact in float64.
        packed = torch.stack([probabilities.double(), tokens.double()]).tolist()
        return [
            _candidates(p[: row.count], t[: row.count])
            for row, p, t in zip(rows, packed[0], packed[1], strict=True)
        ]

    def _add_noise(self, scores: Tensor, rows: Sequence[RowSampling]) -> None:
        keys = [row.noise_key for row in rows]
        known = [key for key in keys if key is not None]
        if not known:
            return
        missing = sorted({key for key in known if key not in self._noise})
        if missing:
            columns = torch.tensor(missing, device=scores.device)
            tokens = torch.arange(scores.shape[1], device=scores.device)
            noise = gumbel(tokens[None], columns[:, 1:], columns[:, :1])
            self._noise.update(zip(missing, noise, strict=True))
        for row, key in zip(scores, keys, strict=True):
            if key is not None:
                row += self._noise[key]
                self._noise.move_to_end(key)
        while len(self._noise) > NOISE_ROWS:
            self._noise.popitem(last=False)


def _candidates(probabilities: list[float], token_ids: list[float]) -> Candidates:
    if not all(math.isfinite(p) for p in probabilities):
        return Candidates((), ())
    return Candidates(tuple(map(int, token_ids)), tuple(probabilities))


def _filter_rows(scores: Tensor, rows: Sequence[RowSampling]) -> None:
    """Set what the requests' filters drop to -inf, in place."""
    groups: dict[tuple[int, float, float], list[int]] = {}
    for i, row in enumerate(rows):
        if row.filters is not None:
            groups.setdefault(row.filters, []).append(i)
    for (top_k, top_p, min_p), members in groups.items():
        part = scores[members]
        floor = _floor(part, top_k, top_p, min_p)
        scores[members] = part.masked_fill(part < floor[:, None], float("-inf"))


def _floor(scores: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """[n], the smallest score of each row that is kept: top_k, top_p on the rest, min_p.

    Close to `wanspec_kernels.sampling.cutoff`, which decides; here a tie or a rounding costs no
    more than a proposal, and so does a nucleus of more than `NUCLEUS` tokens, which is left whole.
    """
    vocab = scores.shape[1]
    best = scores.topk(min(max(NUCLEUS, top_k), vocab)).values
    if 0 < top_k < vocab:
        best = best[:, :top_k]
        floor, mass = best[:, -1], best.logsumexp(1)
    else:
        floor, mass = scores.new_full(scores.shape[:1], float("-inf")), scores.logsumexp(1)
    if top_p < 1:
        before = (best - mass[:, None]).exp().cumsum(1) < top_p
        last = before.sum(1, keepdim=True)
        nucleus = best.gather(1, last.clamp(max=best.shape[1] - 1))[:, 0]
        floor = torch.where(last[:, 0] < best.shape[1], torch.maximum(floor, nucleus), floor)
    if min_p > 0:
        floor = torch.maximum(floor, best[:, 0] + math.log(min_p))
    return floor
