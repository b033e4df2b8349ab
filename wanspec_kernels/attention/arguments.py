"""What every backend of tree attention takes besides query and pages."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Trees:
    """A batch of trees, and the slots of each request."""

    page_table: Tensor  # [batch, max_pages] int32
    context_lens: Tensor  # [batch] int32
    indptr: Tensor  # [batch + 1] int32
    ancestor_bits: Tensor  # [num_nodes, words] int64
    depth: Tensor  # [num_nodes] int32
    max_nodes: int


@dataclass(frozen=True)
class Scoring:
    """How scores are made of queries and keys; None is a feature that is not used."""

    scale: float
    window: int | None = None  # positions a node sees, its own included
    softcap: float | None = None
    sinks: Tensor | None = None  # [heads]
    k_scale: Tensor | None = None  # [kv_heads] float32; key = stored number * scale
    v_scale: Tensor | None = None
