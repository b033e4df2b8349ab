"""The public function: checks, choice of a backend, dispatch."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from wanspec_kernels.backend import choose_backend
from wanspec_kernels.extension import has_clusters, has_cuda_extension
from wanspec_kernels.sampling import SamplingParams
from wanspec_kernels.tree import DraftTree
from wanspec_kernels.verify import joint_operators, operators
from wanspec_kernels.verify.draws import Draws

Rule = Literal["match", "rejection", "block", "traversal"]
RULES: tuple[str, ...] = get_args(Rule)
Backend = Literal["auto", "cuda", "triton", "reference"]

LOGIT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Of one node: its rows times their width. The kernel compares all with all, and Triton's largest
# block has 2**20 numbers.
MAX_ENTRIES = 1024
# A cluster's shared memory holds a row: of eight blocks at least, 128 KiB each beside buffers.
MAX_ROW_BYTES = 8 * 128 * 1024


@dataclass(frozen=True)
class VerifyResult:
    """All tensors int32, on the device of the logits."""

    token_ids: Tensor  # [batch, max_depth + 1]: accepted drafts, the token that follows, then -1
    num_accepted: Tensor  # [batch], drafts only
    accepted_nodes: Tensor  # [batch, max_depth]: index within the tree, then -1
    status: Tensor  # [batch]: 0, or 1 if a row on the path was invalid

    def raise_for_status(self) -> None:
        """Wait for the device and raise if a row was invalid.

        A row is invalid if it holds NaN, +inf or only -inf; under ``"match"`` also if its largest
        logit overflows when it is divided by the temperature. Such a request keeps what was
        accepted above that row; its following token is -1.

        Raises:
            ValueError: names the requests.
        """
        bad = self.status.nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                "target_logits: expected numbers that stay finite when divided by the temperature, "
                f"got others on the path of requests {bad}"
            )


def verify_tree(
    tree: DraftTree,
    target_logits: Tensor,
    sampling: SamplingParams,
    positions: Tensor,
    *,
    rule: Rule = "match",
    draft: Draws | None = None,
    token_bitmask: Tensor | None = None,
    backend: Backend = "auto",
) -> VerifyResult:
    """Walk each tree as far as the target agrees, and take one token more.

    Under ``"match"`` the target samples its own token at each node on the path, as
    ``argmax(logit / T + gumbel(seed, position, token))`` over the filtered row, and follows the
    child that carries it. Under ``"rejection"`` each node's draws are tested in order (Leviathan et
    al. 2023, Theorem 1; Miao et al. 2024 for several) and the token after the last rejection is
    sampled from what is left of the target. ``"block"`` (Sun et al. 2024, arXiv 2403.10444, for
    chains with one draw a node) and ``"traversal"`` (Weng et al. 2025, arXiv 2505.12398, for trees)
    take the same `draft` and judge a branch as a whole, from its end; on a chain the two are the
    same, and nothing accepts more in expectation. They read every row of the tree.

    Nothing waits for the device with backends ``"cuda"`` and ``"triton"``, and the call can be
    captured in a CUDA graph and compiled with ``torch.compile(fullgraph=True)``.

    Args:
        tree: the drafts; a request whose tree has no rows gets -1 everywhere.
        target_logits: [tree.num_nodes, vocab] bfloat16, float16 or float32, rows of any stride:
            row i scores what follows node i. -inf marks a token that may not be chosen. Of a padded
            vocabulary pass ``target_logits[:, :vocab]``.
        sampling: [batch] each.
        positions: [batch] int64, absolute index of the token that follows each root. Noise at
            depth d is keyed by ``positions + d``; the coins of ``"block"`` and ``"traversal"`` are
            by ``positions`` and node.
        rule: ``"match"`` takes any proposals; the others must be able to trust `draft`.
        draft: what the tree's tokens were drawn from, for every rule but ``"match"``. For
            ``"traversal"`` its presence must be decided as docs/design.md says.
        token_bitmask: [tree.num_nodes, at least ceil(vocab / 32)] int32, contiguous: a grammar's,
            in the layout of xgrammar. Token t may follow node i if bit ``t % 32`` of
            ``token_bitmask[i, t // 32]`` is set.
        backend: ``"cuda"`` needs the CUDA extension and thread-block clusters (compute capability
            9.0 or later), and has ``"match"`` and ``"rejection"``; ``"triton"`` runs on CPU tensors
            only under ``TRITON_INTERPRET=1``. ``"auto"`` takes the first of them that can run for
            CUDA tensors, and ``"reference"`` for others.

    Raises:
        ValueError: a tensor has another shape, dtype or device than said above; or the rule is
            ``"block"`` and a node has two draws (the reference only: a kernel does not wait to
            see, and does what ``"traversal"`` does).
        RuntimeError: `backend` cannot run here, or not this rule; or it is a kernel,
            and the rows of some node of `draft` have more than MAX_ENTRIES entries together.
    """
    _check(tree, target_logits, sampling, positions)
    if token_bitmask is not None:
        _check_bitmask(token_bitmask, target_logits)
    if rule not in RULES:
        expected = ", ".join(map(repr, RULES))
        raise ValueError(f"rule: expected one of {expected}, got {rule!r}")
    if (draft is None) != (rule == "match"):
        got = "None" if draft is None else "Draws"
        raise ValueError(
            f"draft: expected Draws with every rule but 'match', got {got} with {rule!r}"
        )
    if rule in joint_operators.OPERATORS:
        chosen = joint_operators.choose(rule, backend, target_logits.device)
    else:
        chosen = choose_backend(
            "verify_tree",
            backend,
            target_logits.device,
            cuda_lacks=lambda: _cuda_lacks(target_logits),
        )
    parameters = (
        positions,
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.seed,
        tree.max_depth,
    )
    logits = (target_logits, token_bitmask)
    nodes = (tree.token_ids, tree.parents, tree.indptr)
    if draft is None:
        return VerifyResult(*operators.verify_match(*logits, *nodes, *parameters, chosen))

    _check_draws(draft, tree)
    entries = draft.max_rows * draft.token_ids.shape[1]
    if chosen != "reference" and entries > MAX_ENTRIES:
        raise RuntimeError(
            f"verify_tree: backend {chosen}: draft: expected at most {MAX_ENTRIES} entries "
            f"a node, got {draft.max_rows} rows of {draft.token_ids.shape[1]}"
        )
    draws = (
        draft.indptr,
        draft.children,
        draft.rows,
        draft.token_ids,
        draft.weights,
        draft.replacement,
        draft.max_rows,
    )
    if rule in joint_operators.OPERATORS:
        verify = joint_operators.OPERATORS[rule]
        return VerifyResult(*verify(*logits, *nodes, *draws, *parameters, chosen))
    without_parents = (tree.token_ids, tree.indptr)
    outputs = operators.verify_rejection(*logits, *without_parents, *draws, *parameters, chosen)
    return VerifyResult(*outputs)


def _cuda_lacks(target_logits: Tensor) -> str | None:
    """What the CUDA kernels lack to run on these logits, or None."""
    if not target_logits.is_cuda:
        return f"expected tensors on cuda, got {target_logits.device}"
    if not has_cuda_extension():
        return "the CUDA extension is not built: make cuda"
    if not has_clusters(target_logits.get_device()):
        return "expected compute capability 9.0 or later, for thread-block clusters"
    row_bytes = target_logits.shape[1] * target_logits.element_size()
    if row_bytes > MAX_ROW_BYTES:
        return f"expected rows of at most {MAX_ROW_BYTES} bytes, got {row_bytes}"
    return None


def _check(
    tree: DraftTree, target_logits: Tensor, sampling: SamplingParams, positions: Tensor
) -> None:
    device = tree.device
    vocab = target_logits.shape[-1] if target_logits.dim() == 2 else "vocab"
    shape_and_device = f"expected [{tree.num_nodes}, {vocab}] on {device}"
    if (
        target_logits.dim() != 2
        or target_logits.shape[0] != tree.num_nodes
        or target_logits.shape[1] == 0
        or target_logits.device != device
    ):
        got = f"{list(target_logits.shape)} on {target_logits.device}"
        raise ValueError(f"target_logits: {shape_and_device}, got {got}")
    if target_logits.dtype not in LOGIT_DTYPES:
        raise ValueError(
            f"target_logits: expected bfloat16, float16 or float32, got {target_logits.dtype}"
        )
    if target_logits.shape[1] > 1 and target_logits.stride(1) != 1:
        raise ValueError(
            f"target_logits: expected a last dimension of stride 1, got {target_logits.stride(1)}"
        )
    batch = [tree.batch]
    _check_tensor("positions", positions, batch, torch.int64, device)
    _check_tensor("sampling.temperature", sampling.temperature, batch, torch.float32, device)
    _check_tensor("sampling.top_k", sampling.top_k, batch, torch.int32, device)
    _check_tensor("sampling.top_p", sampling.top_p, batch, torch.float32, device)
    _check_tensor("sampling.min_p", sampling.min_p, batch, torch.float32, device)
    _check_tensor("sampling.seed", sampling.seed, batch, torch.int64, device)


def _check_bitmask(token_bitmask: Tensor, target_logits: Tensor) -> None:
    num_nodes, vocab = target_logits.shape
    least = (vocab + 31) // 32
    width = token_bitmask.shape[1] if token_bitmask.dim() == 2 else least
    expected = [num_nodes, max(width, least)]
    _check_tensor("token_bitmask", token_bitmask, expected, torch.int32, target_logits.device)


def _check_draws(draft: Draws, tree: DraftTree) -> None:
    device = tree.device
    num_draws = draft.children.shape[0]
    table = list(draft.token_ids.shape)
    if len(table) != 2:
        raise ValueError(f"draft.token_ids: expected [num_rows, support], got {table}")
    _check_tensor("draft.indptr", draft.indptr, [tree.num_nodes + 1], torch.int32, device)
    _check_tensor("draft.children", draft.children, [num_draws], torch.int32, device)
    _check_tensor("draft.rows", draft.rows, [num_draws], torch.int32, device)
    _check_tensor("draft.token_ids", draft.token_ids, table, torch.int32, device)
    _check_tensor("draft.weights", draft.weights, table, torch.int32, device)
    _check_tensor("draft.replacement", draft.replacement, table[:1], torch.bool, device)


def _check_tensor(
    name: str, tensor: Tensor, shape: list[int], dtype: torch.dtype, device: torch.device
) -> None:
    if list(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != device:
        raise ValueError(
            f"{name}: expected {shape} {dtype} on {device}, "
            f"got {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")
