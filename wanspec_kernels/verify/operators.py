"""The torch operators: ``torch.ops.wanspec.verify_match`` and ``verify_rejection``.

Their fakes say dtype, shape and device, so torch.compile and graphs can hold them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]
ANY_CLUSTER = 0  # of thread blocks: the size that suits the device

_PARAMETERS = (
    "Tensor positions, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, "
    "Tensor seed, SymInt max_depth, str backend"
)
_OUTPUTS = "(Tensor token_ids, Tensor num_accepted, Tensor accepted_nodes, Tensor status)"

_library = torch.library.Library("wanspec", "FRAGMENT")
_library.define(
    "verify_match(Tensor target_logits, Tensor? token_bitmask, Tensor token_ids, Tensor parents, "
    f"Tensor indptr, {_PARAMETERS}) -> {_OUTPUTS}"
)
_library.define(
    "verify_rejection(Tensor target_logits, Tensor? token_bitmask, Tensor token_ids, "
    "Tensor indptr, Tensor draw_indptr, Tensor draw_children, Tensor draw_rows, "
    "Tensor draft_token_ids, Tensor draft_weights, Tensor replacement, SymInt max_rows, "
    f"{_PARAMETERS}) -> {_OUTPUTS}"
)
verify_match = torch.ops.wanspec.verify_match.default
verify_rejection = torch.ops.wanspec.verify_rejection.default


def _verify_match(
    target_logits: Tensor,
    token_bitmask: Tensor | None,
    token_ids: Tensor,
    parents: Tensor,
    indptr: Tensor,
    positions: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    max_depth: int,
    backend: str,
) -> Outputs:
    outputs = _allocate(target_logits, indptr, max_depth)
    arguments: list[Any] = [*outputs, target_logits, token_bitmask, token_ids, parents, indptr]
    arguments += [positions, temperature, top_k, top_p, min_p, seed]
    if backend == "cuda":
        torch.ops.wanspec.verify_match_cuda(*arguments, max_depth, ANY_CLUSTER)
    elif backend == "triton":
        from wanspec_kernels.verify import launches

        with torch.cuda.device_of(target_logits):
            launches.verify_match(*arguments)
    else:
        from wanspec_kernels.verify import reference

        reference.verify_match(*arguments)
    return outputs


def _verify_rejection(
    target_logits: Tensor,
    token_bitmask: Tensor | None,
    token_ids: Tensor,
    indptr: Tensor,
    draw_indptr: Tensor,
    draw_children: Tensor,
    draw_rows: Tensor,
    draft_token_ids: Tensor,
    draft_weights: Tensor,
    replacement: Tensor,
    max_rows: int,
    positions: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    max_depth: int,
    backend: str,
) -> Outputs:
    outputs = _allocate(target_logits, indptr, max_depth)
    before: list[Any] = [*outputs, target_logits, token_bitmask, token_ids, indptr]
    before += [draw_indptr, draw_children, draw_rows, draft_token_ids, draft_weights, replacement]
    after: list[Any] = [positions, temperature, top_k, top_p, min_p, seed]
    if backend == "cuda":
        torch.ops.wanspec.verify_rejection_cuda(*before, max_rows, *after, max_depth, ANY_CLUSTER)
    elif backend == "triton":
        from wanspec_kernels.verify import launches

        with torch.cuda.device_of(target_logits):
            launches.verify_rejection(*before, max_rows, *after)  # type: ignore[arg-type]
    else:
        from wanspec_kernels.verify import reference

        reference.verify_rejection(*before, *after)
    return outputs


def _allocate(target_logits: Tensor, indptr: Tensor, max_depth: int) -> Outputs:
    """token_ids, num_accepted, accepted_nodes, status: the backends write every entry."""
    batch = indptr.shape[0] - 1

    def int32(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=target_logits.device)

    return int32(batch, max_depth + 1), int32(batch), int32(batch, max_depth), int32(batch)


def _fake(indptr_argument: int) -> Callable[..., Outputs]:
    return lambda *args: _allocate(args[0], args[indptr_argument], args[-2])


for _name, _implementation, _indptr_argument in (
    ("verify_match", _verify_match, 4),
    ("verify_rejection", _verify_rejection, 3),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"wanspec::{_name}", _fake(_indptr_argument), lib=_library)
