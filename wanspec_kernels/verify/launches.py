"""How the kernels are launched; importing this loads Triton."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from wanspec_kernels.verify.match_kernel import verify_match_kernel
from wanspec_kernels.verify.rejection_kernel import verify_rejection_kernel

# Without it a multiply and an add may become one operation, and noise and weights other bits.
EXACT = {"enable_fp_fusion": False}
# Low bits of a float32 key that a logit of the dtype never uses.
KEY_SHIFTS = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}
MAXIMA = 2048  # of a row, to tell its largest logits apart


@dataclass(frozen=True)
class Shape:
    """How a batch is spread over the device."""

    group: int  # programs that share a tree, a power of two
    groups: int  # each takes every groups-th tree
    block: int  # logits that a program holds at once, a power of two
    num_warps: int
    max_top_k: int = 256  # larger ones take passes over the row
    capacity: int = 512  # largest logits gathered, a power of two

    @property
    def maxima(self) -> int:
        """Of each program."""
        return min(self.block, MAXIMA // self.group)


MAX_GROUP = 32
BLOCK = 2048
# Of (programs an SM, warps a program): one large program answers sooner; two small ones, which fit
# whatever registers they take, do more between them. Measured on an H200: bench/NOTES.md.
FEW_TREES, MANY_TREES = (1, 8), (2, 4)


def choose_shape(batch: int, vocab: int, device: torch.device) -> Shape:
    block = min(BLOCK, power_of_two(vocab))
    if device.type != "cuda":  # interpreted programs run one after another and cannot meet
        return Shape(1, min(batch, 2), block, 4)
    multiprocessors = _sm_count(device.index)
    per_sm, num_warps = FEW_TREES if 4 * batch <= multiprocessors else MANY_TREES
    resident = per_sm * multiprocessors
    group = 1
    while 2 * group <= min(MAX_GROUP, resident // batch) and group * block < vocab:
        group *= 2
    return Shape(group, min(batch, resident // group), block, num_warps)


def verify_match(
    out_token_ids: Tensor,
    out_num_accepted: Tensor,
    out_accepted_nodes: Tensor,
    out_status: Tensor,
    target_logits: Tensor,
    token_bitmask: Tensor | None,
    *tree_and_parameters: Tensor,
) -> None:
    batch, max_depth = out_accepted_nodes.shape
    if batch == 0:
        return
    vocab = target_logits.shape[1]
    shape = choose_shape(batch, vocab, target_logits.device)
    verify_match_kernel[(shape.groups * shape.group,)](
        out_token_ids,
        out_num_accepted,
        out_accepted_nodes,
        out_status,
        target_logits,
        target_logits if token_bitmask is None else token_bitmask,
        *tree_and_parameters,
        *_scratch(shape, target_logits.device),
        batch,
        max_depth,
        vocab,
        target_logits.stride(0),
        0 if token_bitmask is None else token_bitmask.stride(0),
        **_options(shape, target_logits, token_bitmask),
    )


def verify_rejection(
    out_token_ids: Tensor,
    out_num_accepted: Tensor,
    out_accepted_nodes: Tensor,
    out_status: Tensor,
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
    *parameters: Tensor,
) -> None:
    batch, max_depth = out_accepted_nodes.shape
    if batch == 0:
        return
    vocab, support = target_logits.shape[1], draft_token_ids.shape[1]
    shape = choose_shape(batch, vocab, target_logits.device)
    verify_rejection_kernel[(shape.groups * shape.group,)](
        out_token_ids,
        out_num_accepted,
        out_accepted_nodes,
        out_status,
        target_logits,
        target_logits if token_bitmask is None else token_bitmask,
        token_ids,
        indptr,
        draw_indptr,
        draw_children,
        draw_rows,
        draft_token_ids,
        draft_weights,
        replacement,
        *parameters,
        *_scratch(shape, target_logits.device),
        batch,
        max_depth,
        vocab,
        target_logits.stride(0),
        0 if token_bitmask is None else token_bitmask.stride(0),
        support,
        SUPPORT=power_of_two(support),
        ENTRIES=power_of_two(max_rows * support),
        **_options(shape, target_logits, token_bitmask),
    )


def _scratch(shape: Shape, device: torch.device) -> tuple[Tensor, ...]:
    """counters, slots, maxima, values and ids: what a group's programs exchange."""

    def empty(*sizes: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape.groups, *sizes, dtype=dtype, device=device)

    return (
        torch.zeros(shape.groups, 64, dtype=torch.int32, device=device),
        empty(2, 2, shape.group, dtype=torch.int64),
        empty(2, shape.group * shape.maxima if shape.group > 1 else 0, dtype=torch.float32),
        empty(shape.capacity, dtype=torch.float32),
        empty(shape.capacity, dtype=torch.int32),
    )


def _options(shape: Shape, logits: Tensor, token_bitmask: Tensor | None) -> dict[str, Any]:
    return {
        "MAX_TOP_K": shape.max_top_k,
        "CAPACITY": shape.capacity,
        "MAXIMA": shape.maxima,
        "SHIFT": KEY_SHIFTS[logits.dtype],
        "MASKED": token_bitmask is not None,
        "GROUP": shape.group,
        "BLOCK": shape.block,
        "num_warps": shape.num_warps,
        # Programs that meet must all be running: a grid too large fails instead of waiting.
        "launch_cooperative_grid": shape.group > 1,
        **EXACT,
    }


@cache
def _sm_count(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def power_of_two(n: int) -> int:
    """At least 16: smaller blocks gain nothing."""
    return int(triton.next_power_of_2(max(n, 16)))
