"""What `Target.logits` refuses, as far as the host can see it without waiting for the device."""

from collections.abc import Sequence

from torch import Tensor

from wanspec_kernels.attention.checks import check_slots
from wanspec_kernels.attention.reference import first_visible_slot
from wanspec_kernels.kv_cache import PagedKVCache
from wanspec_kernels.tree import DraftTree


def check_batch(
    tree: DraftTree, context_lens: Tensor, page_table: Tensor, cache: PagedKVCache
) -> None:
    """Shapes, dtypes and devices. Raises ValueError, with what was expected and what came."""
    check_slots(page_table, context_lens, tree.batch)
    device = cache.k_pages.device
    for name, tensor in (
        ("tree", tree.token_ids),
        ("context_lens", context_lens),
        ("page_table", page_table),
    ):
        if tensor.device != device:
            raise ValueError(f"{name}: expected on {device} as the model, got {tensor.device}")


def check_values(
    tree: DraftTree,
    context_lens: Tensor,
    page_table: Tensor,
    cache: PagedKVCache,
    *,
    vocab_size: int,
    max_length: int,
    windows: Sequence[int | None],
) -> None:
    """Token ids, lengths and pages of a batch on the CPU, where they can be read at once.

    Pages that every layer's window leaves behind may have been given back.
    """
    bounds = tree.indptr.tolist()
    token_ids = tree.token_ids[: bounds[-1]].tolist()
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        wrong = next(t for t in token_ids if not 0 <= t < vocab_size)
        raise ValueError(f"tree: expected token ids of 0..{vocab_size - 1}, got {wrong}")
    widest = None if None in windows else max(filter(None, windows))
    depths, page_size = tree.depth.tolist(), cache.page_size
    for b, context_len in enumerate(context_lens.tolist()):
        first, end = bounds[b], bounds[b + 1]
        if first == end:
            continue
        length = context_len + max(depths[first:end]) + 1
        if context_len < 0 or length > max_length:
            raise ValueError(
                f"context_lens: expected a tree within 0..{max_length} tokens of text, got "
                f"{context_len} and {length - context_len} levels of request {b}"
            )
        seen = first_visible_slot(context_len, widest) // page_size
        num_slots = context_len + end - first
        num_pages = -(-num_slots // page_size)
        pages = page_table[b, seen:num_pages].tolist()
        wrong = [page for page in pages if not 0 <= page < cache.num_pages]
        if wrong or len(pages) < num_pages - seen:
            raise ValueError(
                f"page_table: expected {num_pages} pages of 0..{cache.num_pages - 1} for the "
                f"{num_slots} slots of request {b}, got "
                + (f"page {wrong[0]}" if wrong else f"{page_table.shape[1]}")
            )
