"""What others do from the same logits, each behind one small function of its public interface.

A peer is prepared on a case (tables and buffers that an engine has ready, not timed), checked, then
called. None of them knows coupled noise, so what they accept differs; what they read does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.cases import MODES, Case

Call = Callable[[], Any]
ALL = frozenset(MODES)
SAMPLED = ALL - {"greedy"}
ROWS_AT_ONCE = 1024  # rows of a sort, which needs some twenty bytes a logit


class NotInstalled(Exception):
    """The peer cannot be imported here; the message says what is missing."""


@dataclass(frozen=True)
class Peer:
    name: str
    label: str  # heading of its column
    does: str  # what is timed, for the table's footnote
    modes: frozenset[str]
    rules: frozenset[str]
    prepare: Callable[[Case], Call]
    check: Callable[[Case, Any], None]  # raises AssertionError
    needs_cuda: bool = True

    def covers(self, case: Case) -> bool:
        return case.mode in self.modes and case.rule in self.rules


# --- torch


def _each(case: Case, column: Tensor) -> Tensor:
    """A request's value for each of its rows, [num_rows, 1]."""
    return column.repeat_interleave(case.num_nodes)[:, None]


def _torch_read(case: Case) -> Call:
    return lambda: case.logits.amax(1)


def _torch_argmax(case: Case) -> Call:
    return lambda: case.logits.argmax(1)


def _check_argmax(case: Case, out: Tensor) -> None:
    picked = case.logits.gather(1, out[:, None]).squeeze(1)
    assert torch.equal(picked, case.logits.amax(1)), "not a row's largest"


def _torch_full(case: Case) -> Call:
    """Probabilities of all rows, filters by sorting, a draw for each row, then the walk."""
    tree = case.tree
    batch, nodes = len(case.trees), case.num_nodes
    temperature = _each(case, case.sampling.temperature)
    limits = MODES[case.mode]
    starts = tree.indptr[:-1].repeat_interleave(nodes).long()
    parent = torch.where(tree.parents >= 0, tree.parents.long() + starts, starts)
    is_root = tree.parents < 0

    def tokens() -> Tensor:
        if case.mode == "greedy":
            return case.logits.argmax(1)
        drawn = []
        parts = zip(case.logits.split(ROWS_AT_ONCE), temperature.split(ROWS_AT_ONCE), strict=True)
        for logits, heat in parts:
            scaled = logits.float() / heat
            if limits:
                scaled = sort_filter(scaled, limits.get("top_k"), limits.get("top_p"))
            probabilities = scaled.softmax(1)
            race = torch.empty_like(probabilities).exponential_()
            drawn.append(probabilities.div_(race).argmax(1))
        return torch.cat(drawn)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        own = tokens()
        agrees = is_root | (own[parent] == tree.token_ids)
        alive = is_root
        for _ in range(tree.max_depth):
            alive = agrees & (alive[parent] | is_root)
        accepted = alive.view(batch, nodes)
        num_accepted = accepted.sum(1) - 1
        # The last accepted row is the deepest: a child comes after its parent.
        order = torch.arange(nodes, device=own.device)
        last = torch.where(accepted, order, -1).amax(1) + tree.indptr[:-1]
        return own, num_accepted, own[last]

    return run


def sort_filter(scaled: Tensor, top_k: float | None, top_p: float | None) -> Tensor:
    """[rows, vocab] scaled logits with -inf at what top-k, then top-p, drop: by one sort."""
    values, order = scaled.sort(1, descending=True)
    if top_k is not None:
        values[:, int(top_k) :] = -torch.inf
    if top_p is not None:
        probabilities = values.softmax(1)
        above = probabilities.cumsum(1) - probabilities
        values.masked_fill_(above >= top_p, -torch.inf)
    return torch.empty_like(values).scatter_(1, order, values)


def _check_full(case: Case, out: tuple[Tensor, Tensor, Tensor]) -> None:
    own, num_accepted, _ = out
    _check_tokens(case, own)
    most = case.tree.max_depth
    assert bool(((num_accepted >= 0) & (num_accepted <= most)).all()), "accepted count out of range"
    if case.mode == "greedy" and case.rule == "match":
        assert bool((num_accepted == case.accepted_depth).all()), "greedy walk stops elsewhere"


def _check_tokens(case: Case, own: Tensor) -> None:
    """Every drawn token lies at or above what sorting in float64 keeps, in some of the rows."""
    sample = torch.arange(len(own), device=own.device)[:: max(1, len(own) // 32)]
    scaled = case.logits[sample].double()
    limits = MODES[case.mode]
    if case.mode != "greedy":
        scaled /= _each(case, case.sampling.temperature)[sample]
    # A little wider, as float32 and float64 cut a nucleus differently.
    top_p = limits["top_p"] + 1e-4 if "top_p" in limits else None
    kept = sort_filter(scaled, limits.get("top_k"), top_p)
    least = kept.masked_fill(kept == -torch.inf, torch.inf).amin(1)
    picked = scaled.gather(1, own[sample, None].long()).squeeze(1)
    assert bool((picked >= least).all()), "drew a token that the filters drop"


# --- FlashInfer, and SGLang's verification on top of it


def _flashinfer() -> Any:
    try:
        import flashinfer.sampling as sampling
    except ImportError as error:
        raise NotInstalled(f"flashinfer: {error}") from None
    return sampling


def _flashinfer_probabilities(case: Case) -> Callable[[], Tensor]:
    """Dense target probabilities of every row; a filter that is off is not called."""
    sampling = _flashinfer()
    rows = case.logits.shape[0]
    device = case.logits.device
    temperature = _each(case, case.sampling.temperature).squeeze(1).contiguous()
    limits = MODES[case.mode]
    top_k = torch.full((rows,), int(limits.get("top_k", 0)), dtype=torch.int32, device=device)
    top_p = torch.full((rows,), float(limits.get("top_p", 1.0)), device=device)

    def run() -> Tensor:
        probabilities = sampling.softmax(case.logits, temperature=temperature)
        if "top_k" in limits:
            probabilities = sampling.top_k_renorm_probs(probabilities, top_k)
        if "top_p" in limits:
            probabilities = sampling.top_p_renorm_probs(probabilities, top_p)
        return probabilities

    return run


def _check_probabilities(case: Case, out: Tensor) -> None:
    sums = out.sum(1)
    assert bool(((sums - 1).abs() < 1e-3).all()), f"a row sums to {float(sums.min())}"
    sample = torch.arange(len(out), device=out.device)[:: max(1, len(out) // 16)]
    scaled = case.logits[sample].double() / _each(case, case.sampling.temperature)[sample]
    limits = MODES[case.mode]
    expected = sort_filter(scaled, limits.get("top_k"), limits.get("top_p")).softmax(1)
    # Total variation. Logits tied at a cutoff may fall either way, which moves a few percent.
    distance = (out[sample].double() - expected).abs().sum(1) / 2
    middle, most = float(distance.median()), float(distance.max())
    near = middle < 1e-2 and most < 8e-2
    assert near, f"{middle:.4f} (median) and {most:.4f} (most) from sorting in float64"


def _flashinfer_chain(case: Case) -> Call:
    """The same, then its chain rejection sampler, a tree's nodes taken for a chain."""
    sampling = _flashinfer()
    probabilities = _flashinfer_probabilities(case)
    batch, nodes, vocab = len(case.trees), case.num_nodes, case.vocab
    tokens = case.tree.token_ids.view(batch, nodes)[:, 1:].contiguous()
    # Half of each draft's mass on its token: dense, as the function wants them.
    draft = torch.full((batch, nodes - 1, vocab), 0.5 / (vocab - 1), device=case.logits.device)
    draft.scatter_(2, tokens.long()[..., None], 0.5)
    counts = [torch.zeros(batch, dtype=torch.int32, device=draft.device) for _ in range(2)]
    seed = torch.tensor([7], dtype=torch.int64, device=draft.device)
    offset = torch.tensor([0], dtype=torch.int64, device=draft.device)

    def run() -> Any:
        target = probabilities().view(batch, nodes, vocab)
        return sampling.chain_speculative_sampling(
            draft, tokens, target, *counts, seed=seed, offset=offset
        )

    return run


def _check_chain(case: Case, out: Any) -> None:
    tokens = out[0] if isinstance(out, tuple | list) else out
    batch, nodes = len(case.trees), case.num_nodes
    assert list(tokens.shape) == [batch, nodes], f"shape {list(tokens.shape)}"
    valid = (tokens >= 0) & (tokens < case.vocab)
    assert bool(valid[:, 0].all()), "no token at all"
    assert bool((valid | (tokens == -1)).all()), "a token outside the vocabulary"


def _sglang(case: Case) -> Call:
    """FlashInfer's probabilities, dense zeros for the draft's, and sgl_kernel's tree walk."""
    try:
        from sgl_kernel import tree_speculative_sampling_target_only
    except ImportError as error:
        raise NotInstalled(f"sgl_kernel: {error}") from None
    probabilities = _flashinfer_probabilities(case)
    tree = case.tree
    batch, nodes, vocab = len(case.trees), case.num_nodes, case.vocab
    device = case.logits.device

    def grid(column: Tensor) -> Tensor:
        return column.view(batch, nodes).long().contiguous()

    links = (
        grid(tree.token_ids),
        torch.arange(batch * nodes, device=device).view(batch, nodes),
        grid(tree.first_child),
        grid(tree.next_sibling),
    )
    coins = torch.rand(batch, nodes, device=device), torch.rand(batch, device=device)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        predicts = torch.full((batch * nodes,), -1, dtype=torch.int32, device=device)
        accepted = torch.full((batch, tree.max_depth + 1), -1, dtype=torch.int32, device=device)
        count = torch.zeros(batch, dtype=torch.int32, device=device)
        target = probabilities().view(batch, nodes, vocab)
        draft = torch.zeros_like(target)
        tree_speculative_sampling_target_only(
            predicts, accepted, count, *links, *coins, target, draft
        )
        return predicts, accepted, count

    return run


def _check_sglang(case: Case, out: tuple[Tensor, Tensor, Tensor]) -> None:
    predicts, accepted, count = out
    assert bool((accepted[:, 0] >= 0).all()), "the root is not accepted"
    assert bool(((count >= 0) & (count <= case.tree.max_depth)).all()), "count out of range"
    assert bool((predicts < case.vocab).all()), "a token outside the vocabulary"


# --- vLLM


def _vllm(case: Case) -> Call:
    """A float32 copy, temperature, filters, and its chain rejection sampler on one-hot drafts."""
    try:
        from vllm.v1.sample.ops.topk_topp_triton import apply_top_k_top_p_triton
        from vllm.v1.worker.gpu.sample.gumbel import apply_temperature
        from vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils import rejection_sample
    except ImportError as error:
        raise NotInstalled(f"vllm: {error}") from None
    batch, nodes = len(case.trees), case.num_nodes
    device = case.logits.device
    row = torch.arange(batch * nodes, device=device)
    request, step = (row // nodes).int(), (row % nodes).int()
    requests = torch.arange(batch, dtype=torch.int32, device=device)
    drafts = case.tree.token_ids.long()
    positions = case.positions.repeat_interleave(nodes) + step
    limits = MODES[case.mode]
    top_k = torch.full((len(row),), int(limits.get("top_k", 0)), dtype=torch.int32, device=device)
    top_p = torch.full((len(row),), float(limits.get("top_p", 1.0)), device=device)

    def run() -> Any:
        logits = case.logits.float()
        if case.mode != "greedy":
            apply_temperature(logits, request, case.sampling.temperature)
        if limits:
            logits = apply_top_k_top_p_triton(
                logits,
                top_k if "top_k" in limits else None,
                top_p if "top_p" in limits else None,
            )
        return rejection_sample(
            logits,
            None,
            drafts,
            case.tree.indptr,
            positions,
            requests,
            request,
            step,
            case.sampling.temperature,
            case.sampling.seed,
            nodes - 1,
        )

    return run


def _check_vllm(case: Case, out: tuple[Tensor, Tensor]) -> None:
    tokens, count = out
    if case.mode == "greedy":
        own = case.logits.argmax(1).view(-1, case.num_nodes)
        agrees = own[:, :-1] == case.tree.token_ids.view(own.shape)[:, 1:]
        assert torch.equal(count, 1 + agrees.int().cumprod(1).sum(1).int()), "another chain"
    assert bool(((count >= 1) & (count <= case.num_nodes)).all()), "count out of range"
    first = tokens[:, 0]
    assert bool(((first >= 0) & (first < case.vocab)).all()), "a token outside the vocabulary"


BOTH = frozenset({"match", "rejection"})
MATCH = frozenset({"match"})

PEERS = (
    Peer(
        "torch_full", "torch, sort and walk",
        "argmax (greedy), or softmax of all rows, one sort for the filters, a draw a row; then the "
        "walk", ALL, MATCH, _torch_full, _check_full, needs_cuda=False,
    ),
    Peer(
        "flashinfer", "FlashInfer, no walk",
        "softmax, top_k_renorm_probs, top_p_renorm_probs on all rows: SGLang's verification "
        "without its walk", SAMPLED, MATCH, _flashinfer_probabilities, _check_probabilities,
    ),
    Peer(
        "flashinfer_chain", "FlashInfer chain",
        "the same, then chain_speculative_sampling on dense draft probabilities; a chain, no tree",
        SAMPLED, frozenset({"rejection"}), _flashinfer_chain, _check_chain,
    ),
    Peer(
        "sglang", "SGLang", "FlashInfer's probabilities and "
        "sgl_kernel.tree_speculative_sampling_target_only", SAMPLED, BOTH, _sglang, _check_sglang,
    ),
    Peer(
        "vllm", "vLLM chain",
        "float32 copy, temperature, top-k and top-p, rejection_sample on one-hot drafts; a chain, "
        "no tree", ALL, BOTH, _vllm, _check_vllm,
    ),
    Peer(
        "torch_argmax", "argmax of all rows", "torch.argmax: no sampling, no walk", ALL, MATCH,
        _torch_argmax, _check_argmax, needs_cuda=False,
    ),
    Peer(
        "torch_read", "one read of all rows", "torch.amax: what any reader of all rows must spend",
        ALL, MATCH, _torch_read, lambda case, out: None, needs_cuda=False,
    ),
)  # fmt: skip
