"""The torch operators of the rules that judge a branch as a whole, from its end:
``torch.ops.wanspec.verify_block`` and ``verify_traversal``.
"""

from collections.abc import Callable
from typing import Any

import torch

from wanspec_kernels.backend import choose_backend
from wanspec_kernels.verify import operators

_library = torch.library.Library("wanspec", "FRAGMENT")
for _rule in ("block", "traversal"):
    _library.define(
        f"verify_{_rule}(Tensor target_logits, Tensor? token_bitmask, Tensor token_ids, "
        "Tensor parents, Tensor indptr, Tensor draw_indptr, Tensor draw_children, "
        "Tensor draw_rows, Tensor draft_token_ids, Tensor draft_weights, Tensor replacement, "
        "SymInt max_rows, Tensor positions, Tensor temperature, Tensor top_k, Tensor top_p, "
        "Tensor min_p, Tensor seed, SymInt max_depth, str backend) -> "
        "(Tensor token_ids, Tensor num_accepted, Tensor accepted_nodes, Tensor status)"
    )
OPERATORS: dict[str, Callable[..., operators.Outputs]] = {
    "block": torch.ops.wanspec.verify_block.default,
    "traversal": torch.ops.wanspec.verify_traversal.default,
}


def choose(rule: str, backend: str, device: torch.device) -> str:
    """The backend of a joint rule.

    Raises:
        RuntimeError: `backend` has no such rule, or cannot run here.
    """
    if backend == "cuda":
        raise RuntimeError(
            f"verify_tree: rule {rule!r}: expected backend 'auto', 'triton' or 'reference', "
            "got 'cuda'"
        )
    return choose_backend("verify_tree", backend, device)


def _verify_block(*arguments: Any) -> operators.Outputs:
    from wanspec_kernels.verify import block_reference

    if arguments[-1] != "triton":
        block_reference.check_chains(arguments[5])
    return _verify(block_reference.walk, *arguments)


def _verify_traversal(*arguments: Any) -> operators.Outputs:
    from wanspec_kernels.verify import traversal_reference

    return _verify(traversal_reference.walk, *arguments)


def _verify(walk: Callable[..., Any], *arguments: Any) -> operators.Outputs:
    *inputs, max_depth, backend = arguments
    outputs = operators._allocate(inputs[0], inputs[4], max_depth)
    if backend == "triton":
        from wanspec_kernels.verify import joint_launches

        # On chains the two rules are one.
        with torch.cuda.device_of(inputs[0]):
            joint_launches.verify(*outputs, *inputs)
    else:
        from wanspec_kernels.verify import joint_reference

        parents, max_rows = 3, 11
        tensors = [x for i, x in enumerate(inputs) if i not in (parents, max_rows)]
        joint_reference.verify(walk, *outputs, *tensors)
    return outputs


def _fake(*arguments: Any) -> operators.Outputs:
    return operators._allocate(arguments[0], arguments[4], arguments[-2])


for _name, _implementation in (
    ("verify_block", _verify_block),
    ("verify_traversal", _verify_traversal),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"wanspec::{_name}", _fake, lib=_library)
