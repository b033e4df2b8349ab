"""What tree attention means: float64, one tree at a time."""

import torch
from torch import Tensor


def tree_attention_reference(
    query: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    context_lens: Tensor,
    indptr: Tensor,
    ancestor_bits: Tensor,
    scale: float,
) -> Tensor:
    """As `tree_attention`; padding rows come out as 0."""
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    kv_heads = k_pages.shape[2]
    bounds = indptr.tolist()
    for b, context_len in enumerate(context_lens.tolist()):
        rows = slice(bounds[b], bounds[b + 1])
        visible = visible_slots(ancestor_bits[rows], context_len)
        keys = gather_slots(k_pages, page_table[b], visible.shape[1]).double()
        values = gather_slots(v_pages, page_table[b], visible.shape[1]).double()
        grouped = query[rows].double().unflatten(1, (kv_heads, -1))
        scores = torch.einsum("nhgd,shd->hgns", grouped, keys) * scale
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        result = torch.einsum("hgns,shd->nhgd", weights, values)
        out[rows] = result.flatten(1, 2).to(out.dtype)
    return out


def visible_slots(ancestor_bits: Tensor, context_len: int) -> Tensor:
    """[nodes, context_len + nodes] bool of one tree's rows of `ancestor_bits`."""
    nodes = ancestor_bits.shape[0]
    node = torch.arange(nodes, device=ancestor_bits.device)
    corner = (ancestor_bits[:, node // 64] >> (node % 64) & 1).bool()
    return torch.cat([corner.new_ones(nodes, context_len), corner], dim=1)


def gather_slots(pages: Tensor, page_row: Tensor, num_slots: int) -> Tensor:
    """[num_slots, kv_heads, dim]: the slots of one request in order, by its page table row."""
    num_pages = -(-num_slots // pages.shape[1])
    return pages[page_row[:num_pages].long()].flatten(0, 1)[:num_slots]
