"""The oracle against one softmax at a time, over sets of ancestors and positions."""

import math

import pytest
import torch

from tests.attention.examples import attention, example
from tests.attention.options import OPTIONS, in_float8


@pytest.mark.parametrize("name", OPTIONS)
def test_is_a_softmax_over_what_a_node_sees(name: str) -> None:
    """Node by node, without ancestor bits and depths."""
    query, paged, tree = example([5, 0, 37], [9, 4, 1], kv_heads=2, group=3)
    options = dict(OPTIONS[name])
    k_scale, v_scale = torch.ones(2), torch.ones(2)
    if name.startswith("float8"):
        paged, scales = in_float8(paged)
        options |= scales
        k_scale, v_scale = scales["k_scale"], scales["v_scale"]
    actual = attention(query, paged, tree, "reference", **options)
    window, softcap = options.get("window", 1000), options.get("softcap", math.inf)
    sinks = options.get("sinks", torch.full((6,), -math.inf))
    page_size = paged.k_pages.shape[1]
    for b in range(tree.batch):
        first, context_len = int(tree.indptr[b]), int(paged.context_lens[b])
        for i in range(int(tree.indptr[b + 1]) - first):
            path, node = [], i
            while node >= 0:
                path.append(context_len + node)
                node = int(tree.parents[first + node])
            slots = [*path, *reversed(range(context_len))][:window]  # from its own position back
            places = [(paged.page_table[b, s // page_size], s % page_size) for s in slots]
            for head in range(6):
                h = head // 3
                keys = torch.stack([paged.k_pages[p, r, h].double() for p, r in places])
                values = torch.stack([paged.v_pages[p, r, h].double() for p, r in places])
                scores = keys @ query[first + i, head].double() * k_scale[h] / 4.0
                if softcap < math.inf:
                    scores = softcap * torch.tanh(scores / softcap)
                weights = scores.exp() / (scores.exp().sum() + sinks[head].double().exp())
                expected = (weights @ values * v_scale[h]).float()
                torch.testing.assert_close(actual[first + i, head], expected, rtol=0, atol=1e-6)
