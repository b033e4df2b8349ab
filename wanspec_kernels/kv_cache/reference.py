"""What `write` and `compact` mean, in plain torch."""

import torch
from torch import Tensor


def write_reference(
    k_pages: Tensor,
    v_pages: Tensor,
    keys: Tensor,
    values: Tensor,
    indptr: Tensor,
    context_lens: Tensor,
    page_table: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> None:
    if context_lens.shape[0] == 0:
        return
    if k_scale is not None and v_scale is not None:
        keys = _quantise(keys, k_scale, k_pages.dtype)
        values = _quantise(values, v_scale, v_pages.dtype)
    rows = torch.arange(keys.shape[0], device=keys.device)
    # A row past the last tree is padding and gets a slot outside of every page.
    b = torch.searchsorted(indptr, rows, right=True) - 1
    real = b < context_lens.shape[0]
    b = b.clamp(max=context_lens.shape[0] - 1)
    slots = torch.where(real, context_lens[b] + rows - indptr[b], -1)
    pages, inside = _find(slots, b, page_table, k_pages)
    if not inside.all():
        keys, values, pages, slots = (x[inside] for x in (keys, values, pages, slots))
    rows_in_page = slots % k_pages.shape[1]
    k_pages[pages, rows_in_page] = keys
    v_pages[pages, rows_in_page] = values


def compact_reference(
    k_pages: Tensor,
    v_pages: Tensor,
    accepted_nodes: Tensor,
    num_accepted: Tensor,
    context_lens: Tensor,
    page_table: Tensor,
) -> None:
    batch, max_depth = accepted_nodes.shape
    depth = torch.arange(1, max_depth + 1, device=accepted_nodes.device).expand(batch, -1)
    b = torch.arange(batch, device=accepted_nodes.device)[:, None].expand(-1, max_depth)
    moves = (depth <= num_accepted[:, None]) & (accepted_nodes > depth)
    b, depth, node = b[moves], depth[moves], accepted_nodes[moves].long()
    sources = context_lens[b] + node
    targets = context_lens[b] + depth
    from_page, from_inside = _find(sources, b, page_table, k_pages[0])
    to_page, to_inside = _find(targets, b, page_table, k_pages[0])
    inside = from_inside & to_inside
    page_size = k_pages.shape[2]
    source = (from_page[inside], (sources % page_size)[inside])
    target = (to_page[inside], (targets % page_size)[inside])
    for pages in (k_pages, v_pages):
        # All are read before any is written.
        pages[:, target[0], target[1]] = pages[:, source[0], source[1]]


def _quantise(entries: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    largest = torch.finfo(dtype).max
    return (entries.float() / scale[:, None]).clamp(-largest, largest).to(dtype)


def _find(slots: Tensor, b: Tensor, page_table: Tensor, pages: Tensor) -> tuple[Tensor, Tensor]:
    """Page of each slot, and whether there is one."""
    index = slots // pages.shape[1]
    inside = (slots >= 0) & (index < page_table.shape[1])
    page = page_table[b, index.clamp(0, page_table.shape[1] - 1)].long()
    return page, inside & (page >= 0) & (page < pages.shape[0])
