"""The options of published models, alone and together."""

from typing import Any

import torch
from torch import Tensor

from tests.paged_trees import Paged

MAX_FLOAT8 = torch.finfo(torch.float8_e4m3fn).max
SINKS = torch.tensor([0.5, -2.0, 3.0, 1.0, 0.0, 7.0])  # for six heads

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "window of 1": {"window": 1},
    "window within the tree": {"window": 3},
    "window over a page": {"window": 20},
    "window past everything": {"window": 2**31 - 1},
    "softcap": {"softcap": 0.7},
    "sinks": {"sinks": SINKS},
    "float8": {},
    "window, softcap, sinks": {"window": 18, "softcap": 1.5, "sinks": SINKS},
    "float8, window, softcap, sinks": {"window": 4, "softcap": 1.5, "sinks": SINKS},
}


def in_float8(paged: Paged) -> tuple[Paged, dict[str, Tensor]]:
    """The pages quantised, each head by a scale of its own."""
    kv_heads = paged.k_pages.shape[2]
    scales = {
        "k_scale": torch.linspace(0.01, 0.3, kv_heads),
        "v_scale": torch.linspace(0.2, 0.004, kv_heads),
    }
    pages = [
        # Not all versions of torch saturate.
        (pages / scale[:, None]).clamp(-MAX_FLOAT8, MAX_FLOAT8).to(torch.float8_e4m3fn)
        for pages, scale in zip((paged.k_pages, paged.v_pages), scales.values(), strict=True)
    ]
    return Paged(*pages, paged.page_table, paged.context_lens), scales
