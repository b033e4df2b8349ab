"""Tree attention by torch's own operations: what the CPU runs.

What depends on the trees alone is worked out once, for all layers of a model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from wanspec_kernels.attention.arguments import Scoring, Trees
from wanspec_kernels.attention.reference import first_visible_slot, visible_slots


@dataclass(frozen=True)
class TreePlan:
    """One tree of a batch, its slots found in the pages. Slots that no node sees are left out."""

    rows: slice  # of the batch
    slots: Tensor  # [slots] int64, in pages flattened to [num_pages * page_size, ...]
    node_slots: Tensor  # [nodes] int64, those of the tree itself
    mask: Tensor  # [nodes, slots], 0 or -inf; a float is what the CPU kernel takes


def plan_trees(
    trees: Trees, page_size: int, dtype: torch.dtype, window: int | None
) -> list[TreePlan]:
    """Reads lengths back from the device."""
    plans = []
    bounds = trees.indptr.tolist()
    for b, context_len in enumerate(trees.context_lens.tolist()):
        rows = slice(bounds[b], bounds[b + 1])
        first = first_visible_slot(context_len, window)
        visible = visible_slots(trees.ancestor_bits[rows], trees.depth[rows], context_len, window)
        slot = torch.arange(first, visible.shape[1], device=visible.device)
        slots = trees.page_table[b, slot // page_size].long() * page_size + slot % page_size
        visible = visible[:, first:]
        mask = torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, -torch.inf)
        plans.append(TreePlan(rows, slots, slots[context_len - first :], mask))
    return plans


def attend_plans(
    query: Tensor, k_pages: Tensor, v_pages: Tensor, plans: list[TreePlan], scoring: Scoring
) -> Tensor:
    """As `tree_attention`; padding rows come out as 0."""
    kv_heads = k_pages.shape[2]
    flat_keys, flat_values = k_pages.flatten(0, 1), v_pages.flatten(0, 1)
    plain = scoring.softcap is None and scoring.sinks is None
    attend = _attend_fused if plain else _attend_explicitly
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    for plan in plans:
        # [kv_heads, group, nodes, dim] and [kv_heads, 1, slots, dim]
        grouped = query[plan.rows].unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)
        keys = _read(flat_keys[plan.slots], scoring.k_scale, query.dtype)
        values = _read(flat_values[plan.slots], scoring.v_scale, query.dtype)
        result = attend(grouped, keys, values, plan.mask, scoring)
        out[plan.rows] = result.permute(2, 0, 1, 3).flatten(1, 2)
    return out


def tree_attention_sdpa(
    query: Tensor, k_pages: Tensor, v_pages: Tensor, trees: Trees, scoring: Scoring
) -> Tensor:
    plans = plan_trees(trees, k_pages.shape[1], query.dtype, scoring.window)
    return attend_plans(query, k_pages, v_pages, plans, scoring)


def _read(entries: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[slots, kv_heads, dim] as [kv_heads, 1, slots, dim]."""
    if scale is not None:
        entries = (entries.float() * scale[:, None]).to(dtype)
    return entries.transpose(0, 1)[:, None]


def _attend_fused(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scoring: Scoring
) -> Tensor:
    shared = (-1, query.shape[1], -1, -1)  # heads of a group share keys by a stride of 0
    return scaled_dot_product_attention(
        query,
        keys.expand(shared),
        values.expand(shared),
        attn_mask=mask,
        scale=scoring.scale,
    )


def _attend_explicitly(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scoring: Scoring
) -> Tensor:
    """With what torch's fused kernel lacks."""
    scores = (query @ keys.transpose(2, 3)).float() * scoring.scale
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    scores = scores + mask
    if scoring.sinks is not None:
        sinks = scoring.sinks.float().view(*query.shape[:2], 1, 1)
        scores = torch.cat([scores, sinks.expand(*scores.shape[:3], 1)], dim=-1)
    return scores.softmax(-1)[..., : mask.shape[1]].to(values.dtype) @ values
