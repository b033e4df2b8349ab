"""Synthetic traces: a draft that is calibrated, and right about its first token so often."""

import numpy as np
from numpy.typing import NDArray

from wanspec_kernels.simulation.trace import BEYOND, NUM_TOP, Trace
from wanspec_kernels.wire.confidence import code_of

VOCAB_SIZE = 32_768
CONCENTRATION = 1.15  # of the first token's probability: its two beta parameters add up to this
TAIL_EXPONENT = 2.5  # of the others: the k-th has k^-2.5 of what the first leaves
TAIL_TOKENS = 512
OFF_TOP_1 = 0.9  # mean probability of the first token off the path, times that on it
CALIBRATED = (0.65, 0.9)  # top-1 acceptances at which tests compare it with what it claims


def generate(top_1: float, *, positions: int = 6144, texts: int = 12, seed: int = 0) -> Trace:
    """A trace whose target's token is the draft's first with probability `top_1`.

    At each position the first token's probability is drawn from a beta distribution with mean
    `top_1`, so that some positions are certain and some are open, and what it leaves falls as a
    power of the rank. The target's token is then drawn from that very distribution. Both shapes are
    fitted to the bundled pair's trace (a test compares them). Off the path distributions are drawn
    likewise, less certain.
    """
    if not 0.6 <= top_1 <= 0.99:  # below, the tail alone would have a likelier first token
        raise ValueError(f"top_1: expected 0.6..0.99, got {top_1}")
    rng = np.random.default_rng(seed)
    shares = _distributions(rng, top_1, positions)
    # Inverse of the cumulative distribution, all rows at once.
    ranks = (rng.random((positions, 1)) > shares.cumsum(1)).sum(1)
    off = 2 * positions
    off_shares = _distributions(rng, OFF_TOP_1 * top_1, off)
    return Trace(
        text_indptr=np.linspace(0, positions, texts + 1).astype(np.int32),
        token_ids=rng.integers(0, VOCAB_SIZE, positions, dtype=np.int32),
        ranks=np.where(ranks < NUM_TOP, ranks, BEYOND).astype(np.uint8),
        codes=_codes(shares),
        entropies=_entropies(shares),
        off_depths=rng.integers(1, 4, off).astype(np.uint8),
        off_codes=_codes(off_shares),
        off_entropies=_entropies(off_shares),
        about={
            "vocab_size": VOCAB_SIZE,
            "source": "wanspec_kernels.simulation.synthetic",
            "top_1": top_1,
            "seed": seed,
        },
    )


def _distributions(rng: np.random.Generator, top_1: float, count: int) -> NDArray[np.float64]:
    """[count, TAIL_TOKENS], falling; the first has `top_1` on average."""
    tail = np.arange(2.0, TAIL_TOKENS + 1) ** -TAIL_EXPONENT
    tail /= tail.sum()
    low, high = 0.0, top_1
    seed = int(rng.integers(1 << 32))
    for _ in range(30):
        # A first token that comes out less likely than the second changes places with it, so the
        # mean to draw with lies a little below the one that is asked for.
        mean = (low + high) / 2
        beta = np.random.default_rng(seed).beta
        first = beta(CONCENTRATION * mean, CONCENTRATION * (1 - mean), count)
        low, high = (
            (mean, high) if np.maximum(first, (1 - first) * tail[0]).mean() < top_1 else (low, mean)
        )
    shares = np.concatenate([first[:, None], (1 - first)[:, None] * tail], axis=1)
    return np.asarray(-np.sort(-shares, axis=1))


def _codes(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    top = shares[:, :NUM_TOP]
    return np.array([[code_of(p) for p in row] for row in top.tolist()], dtype=np.uint8)


def _entropies(shares: NDArray[np.float64]) -> NDArray[np.float16]:
    logs = np.log2(np.maximum(shares, 1e-30))
    return np.asarray(-(shares * logs).sum(1), dtype=np.float16)
