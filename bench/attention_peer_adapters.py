"""What others take for the same attention, each behind its public interface.

Planning, masks and a dense copy of the pages, where one is needed, are prepared and not timed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.attention_cases import AttentionCase
from bench.peer_adapters import NotInstalled

Call = Callable[[], Tensor]
WORKSPACE_BYTES = 384 << 20


@dataclass(frozen=True)
class AttentionPeer:
    name: str
    label: str
    does: str
    prepare: Callable[[AttentionCase], Call]
    is_masked: bool = True  # its output is tree attention's


def _flashinfer(case: AttentionCase, is_causal: bool) -> Call:
    try:
        from flashinfer import BatchPrefillWithPagedKVCacheWrapper
    except ImportError as error:
        raise NotInstalled(f"flashinfer: {error}") from error
    device = case.query.device
    _, heads, dim = case.query.shape
    _, page_size, kv_heads, _ = case.k_pages.shape
    counts = torch.tensor([-(-s // page_size) for s in case.slots])
    indices = [case.page_table[b, :n] for b, n in enumerate(counts.tolist())]
    last = torch.tensor([(s - 1) % page_size + 1 for s in case.slots], dtype=torch.int32)
    page_indptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).int()
    mask = None
    if not is_causal:
        mask = torch.cat([case.visible(b).flatten() for b in range(len(case.nodes))])
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper = BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend="fa2")
    wrapper.plan(
        case.tree.indptr,
        page_indptr.to(device),
        torch.cat(indices),
        last.to(device),
        heads,
        kv_heads,
        dim,
        page_size,
        custom_mask=mask,
        causal=is_causal,
        q_data_type=case.query.dtype,
        kv_data_type=case.k_pages.dtype,
    )
    return lambda: wrapper.run(case.query, (case.k_pages, case.v_pages))


def _dense(case: AttentionCase) -> tuple[Tensor, Tensor, Tensor]:
    """Query [batch, heads, nodes, dim], keys and values [batch, kv_heads, slots, dim]."""
    if len(set(case.slots)) > 1 or len(set(case.nodes)) > 1:
        raise NotInstalled("dense tensors: expected trees and contexts of one size")
    table = case.page_table.long()
    keys, values = (
        pages[table].flatten(1, 2)[:, : case.slots[0]].transpose(1, 2).contiguous()
        for pages in (case.k_pages, case.v_pages)
    )
    query = case.query.unflatten(0, (len(case.nodes), -1)).transpose(1, 2).contiguous()
    return query, keys, values


def _rows(result: Tensor) -> Tensor:
    return result.transpose(1, 2).flatten(0, 1)


def _sdpa(case: AttentionCase) -> Call:
    query, keys, values = _dense(case)
    mask = torch.stack([case.visible(b) for b in range(len(case.nodes))])[:, None]
    return lambda: _rows(
        scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=True)
    )


def _flex(case: AttentionCase) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    query, keys, values = _dense(case)
    context = case.contexts[0]
    corner = torch.stack([case.visible(b)[:, context:] for b in range(len(case.nodes))])

    def sees(b: Tensor, h: Tensor, row: Tensor, slot: Tensor) -> Tensor:
        return (slot < context) | corner[b, row, (slot - context).clamp(min=0)]

    blocks = create_block_mask(
        sees, len(case.nodes), None, case.nodes[0], case.slots[0], device=str(query.device)
    )
    compiled = torch.compile(flex_attention)
    return lambda: _rows(compiled(query, keys, values, block_mask=blocks, enable_gqa=True))


PEERS = (
    AttentionPeer(
        "flashinfer",
        "FlashInfer, tree mask",
        "BatchPrefillWithPagedKVCacheWrapper with a custom mask over context and tree",
        lambda case: _flashinfer(case, False),
    ),
    AttentionPeer(
        "flashinfer_causal",
        "FlashInfer, causal",
        "the same with the causal mask: trees taken for chains",
        lambda case: _flashinfer(case, True),
        is_masked=False,
    ),
    AttentionPeer(
        "sdpa",
        "SDPA, tree mask",
        "torch's scaled_dot_product_attention with a boolean mask, on dense copies of the pages",
        _sdpa,
    ),
    AttentionPeer(
        "flex",
        "FlexAttention",
        "torch.compile(flex_attention) with a block mask, on dense copies of the pages",
        _flex,
    ),
)
