"""Tree attention as one of transformers' attention implementations.

A name registered without a mask function gets no mask built. What a pass needs besides lies in a
context variable: not every model hands keyword arguments through to its attention.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from transformers import AttentionInterface

from wanspec_kernels.attention import tree_attention
from wanspec_kernels.attention.sdpa import TreePlan, attend_plans, plan_trees
from wanspec_kernels.kv_cache import PagedKVCache
from wanspec_kernels.tree import DraftTree

IMPLEMENTATION = "wanspec_tree"


@dataclass
class TreePass:
    """One forward pass over a batch of trees."""

    tree: DraftTree
    context_lens: Tensor  # [batch] int32
    page_table: Tensor  # [batch, max_pages] int32
    cache: PagedKVCache
    layers_run: int = 0

    def run_layer(
        self, layer: int, query: Tensor, keys: Tensor, values: Tensor, scale: float
    ) -> Tensor:
        """Write keys and values, and attend. All are [num_nodes, heads, dim]."""
        self.layers_run += 1
        k_pages, v_pages = self.cache.k_pages[layer], self.cache.v_pages[layer]
        if keys.shape[1:] != k_pages.shape[2:] or values.shape != keys.shape:
            raise ValueError(
                f"layer {layer}: expected {list(k_pages.shape[2:])} keys and values a node, "
                f"got {list(keys.shape[1:])} and {list(values.shape[1:])}"
            )
        if query.device.type == "cpu":
            for plan in self._plans:
                k_pages.flatten(0, 1).index_copy_(0, plan.node_slots, keys[plan.rows])
                v_pages.flatten(0, 1).index_copy_(0, plan.node_slots, values[plan.rows])
            return attend_plans(query, k_pages, v_pages, self._plans, scale)
        slots = (self.context_lens, self.page_table)
        self.cache.write(layer, keys, values, self.tree, *slots)
        return tree_attention(
            query, k_pages, v_pages, self.page_table, self.context_lens, self.tree, scale=scale
        )

    @cached_property
    def _plans(self) -> list[TreePlan]:
        return plan_trees(
            self.page_table,
            self.context_lens,
            self.tree.indptr,
            self.tree.ancestor_bits,
            self.cache.page_size,
            self.cache.k_pages.dtype,
        )


current_pass: ContextVar[TreePass | None] = ContextVar("current_pass", default=None)


def attend(
    module: nn.Module,
    query: Tensor,  # [1, heads, num_nodes, dim]
    key: Tensor,  # [1, kv_heads, num_nodes, dim]
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    tree_pass = current_pass.get()
    if tree_pass is None:
        raise RuntimeError("expected a pass of Target.logits; this model has no other attention")
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise RuntimeError(f"{type(module).__name__}: tree attention does not support {name}")
    layer = module.layer_idx
    assert isinstance(layer, int)
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    scale = query.shape[2] ** -0.5 if scaling is None else scaling
    return tree_pass.run_layer(layer, query, key, value, scale)[None], None


AttentionInterface.register(IMPLEMENTATION, attend)
