"""What tree attention means: float64, one tree at a time."""

import torch
from torch import Tensor

from wanspec_kernels.attention.arguments import Scoring, Trees


def tree_attention_reference(
    query: Tensor, k_pages: Tensor, v_pages: Tensor, trees: Trees, scoring: Scoring
) -> Tensor:
    """As `tree_attention`; padding rows come out as 0."""
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    kv_heads = k_pages.shape[2]
    bounds = trees.indptr.tolist()
    for b, context_len in enumerate(trees.context_lens.tolist()):
        rows = slice(bounds[b], bounds[b + 1])
        visible = visible_slots(
            trees.ancestor_bits[rows], trees.depth[rows], context_len, scoring.window
        )
        first = first_visible_slot(context_len, scoring.window)
        visible = visible[:, first:]
        slots = torch.arange(first, first + visible.shape[1], device=query.device)
        pages = trees.page_table[b, slots // k_pages.shape[1]].long()
        rows_in_page = slots % k_pages.shape[1]
        keys = k_pages[pages, rows_in_page].double()
        values = v_pages[pages, rows_in_page].double()
        if scoring.k_scale is not None and scoring.v_scale is not None:
            keys = keys * scoring.k_scale.double()[:, None]
            values = values * scoring.v_scale.double()[:, None]
        grouped = query[rows].double().unflatten(1, (kv_heads, -1))
        scores = torch.einsum("nhgd,shd->hgns", grouped, keys) * scoring.scale
        if scoring.softcap is not None:
            scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
        scores = scores.masked_fill(~visible, -torch.inf)
        if scoring.sinks is not None:
            sinks = scoring.sinks.double().view(kv_heads, -1, 1, 1)
            scores = torch.cat([scores, sinks.expand(*scores.shape[:3], 1)], dim=-1)
        weights = scores.softmax(-1)[..., : visible.shape[1]]
        result = torch.einsum("hgns,shd->nhgd", weights, values)
        out[rows] = result.flatten(1, 2).to(out.dtype)
    return out


def visible_slots(
    ancestor_bits: Tensor, depth: Tensor, context_len: int, window: int | None
) -> Tensor:
    """[nodes, context_len + nodes] bool of one tree, by its rows of `ancestor_bits` and `depth`."""
    nodes = ancestor_bits.shape[0]
    node = torch.arange(nodes, device=ancestor_bits.device)
    corner = (ancestor_bits[:, node // 64] >> (node % 64) & 1).bool()
    visible = torch.cat([corner.new_ones(nodes, context_len), corner], dim=1)
    if window is not None:
        context = torch.arange(context_len, device=depth.device, dtype=depth.dtype)
        positions = torch.cat([context, context_len + depth])
        visible &= positions > (context_len + depth)[:, None] - window
    return visible


def first_visible_slot(context_len: int, window: int | None) -> int:
    """The root lies lowest and so sees furthest back."""
    return 0 if window is None else max(0, context_len - window + 1)
