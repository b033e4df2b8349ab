"""Tree attention by torch's own fused kernel: what the CPU runs.

What depends on the trees alone is worked out once, for all layers of a model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from wanspec_kernels.attention.reference import visible_slots


@dataclass(frozen=True)
class TreePlan:
    """One tree of a batch, its slots found in the pages."""

    rows: slice  # of the batch
    slots: Tensor  # [context_len + nodes] int64, in pages flattened to [num_pages * page_size, ...]
    node_slots: Tensor  # [nodes] int64, those of the tree itself
    mask: Tensor  # [nodes, context_len + nodes], 0 or -inf; a float is what the CPU kernel takes


def plan_trees(
    page_table: Tensor,
    context_lens: Tensor,
    indptr: Tensor,
    ancestor_bits: Tensor,
    page_size: int,
    dtype: torch.dtype,
) -> list[TreePlan]:
    """Reads lengths back from the device."""
    plans = []
    bounds = indptr.tolist()
    row_in_page = torch.arange(page_size, device=page_table.device)
    for b, context_len in enumerate(context_lens.tolist()):
        rows = slice(bounds[b], bounds[b + 1])
        visible = visible_slots(ancestor_bits[rows], context_len)
        num_slots = visible.shape[1]
        pages = page_table[b, : -(-num_slots // page_size)].long()
        slots = (pages[:, None] * page_size + row_in_page).flatten()[:num_slots]
        mask = torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, -torch.inf)
        plans.append(TreePlan(rows, slots, slots[context_len:], mask))
    return plans


def attend_plans(
    query: Tensor, k_pages: Tensor, v_pages: Tensor, plans: list[TreePlan], scale: float
) -> Tensor:
    """As `tree_attention`; padding rows come out as 0."""
    kv_heads = k_pages.shape[2]
    flat_keys, flat_values = k_pages.flatten(0, 1), v_pages.flatten(0, 1)
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    for plan in plans:
        keys, values = flat_keys[plan.slots], flat_values[plan.slots]
        # [kv_heads, group, nodes or slots, dim]: heads of a group share keys by a stride of 0.
        grouped = query[plan.rows].unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)
        shared = (-1, grouped.shape[1], -1, -1)
        result = scaled_dot_product_attention(
            grouped,
            keys.transpose(0, 1)[:, None].expand(shared),
            values.transpose(0, 1)[:, None].expand(shared),
            attn_mask=plan.mask,
            scale=scale,
        )
        out[plan.rows] = result.permute(2, 0, 1, 3).flatten(1, 2)
    return out


def tree_attention_sdpa(
    query: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    context_lens: Tensor,
    indptr: Tensor,
    ancestor_bits: Tensor,
    scale: float,
) -> Tensor:
    plans = plan_trees(
        page_table, context_lens, indptr, ancestor_bits, k_pages.shape[1], query.dtype
    )
    return attend_plans(query, k_pages, v_pages, plans, scale)
