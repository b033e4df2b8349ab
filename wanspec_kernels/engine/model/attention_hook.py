"""Tree attention as one of transformers' attention implementations.

A name registered without a mask function gets no mask built. What a pass needs besides lies in a
context variable: not every model hands keyword arguments through to its attention.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from wanspec_kernels.attention import tree_attention
from wanspec_kernels.attention.arguments import Scoring, Trees
from wanspec_kernels.attention.sdpa import TreePlan, attend_plans, plan_trees
from wanspec_kernels.engine.model.requirements import UnsupportedModelError
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
    windows: Sequence[int | None]  # of each layer, by the model's configuration
    max_length: int  # of a text
    backend: str = "auto"  # as `tree_attention` takes it
    layers_run: int = 0
    _plans: dict[int | None, list[TreePlan]] = field(default_factory=dict)

    def run_layer(
        self, layer: int, query: Tensor, keys: Tensor, values: Tensor, scoring: Scoring
    ) -> Tensor:
        """Write keys and values, and attend. All are [num_nodes, heads, dim]."""
        self.layers_run += 1
        k_pages, v_pages = self.cache.k_pages[layer], self.cache.v_pages[layer]
        if keys.shape[1:] != k_pages.shape[2:] or values.shape != keys.shape:
            raise UnsupportedModelError(
                f"layer {layer}: expected {list(k_pages.shape[2:])} keys and values a node, as the "
                f"configuration says, got {list(keys.shape[1:])} and {list(values.shape[1:])}; "
                "choose another model"
            )
        if query.device.type == "cpu" and self.backend == "auto":
            plans = self._plan(scoring.window)
            for plan in plans:
                k_pages.flatten(0, 1).index_copy_(0, plan.node_slots, keys[plan.rows])
                v_pages.flatten(0, 1).index_copy_(0, plan.node_slots, values[plan.rows])
            return attend_plans(query, k_pages, v_pages, plans, scoring)
        slots = (self.context_lens, self.page_table)
        self.cache.write(layer, keys, values, self.tree, *slots)
        return tree_attention(
            query,
            k_pages,
            v_pages,
            self.page_table,
            self.context_lens,
            self.tree,
            scale=scoring.scale,
            window=scoring.window,
            softcap=scoring.softcap,
            sinks=scoring.sinks,
            backend=self.backend,
        )

    def outgrown(self, window: int | None) -> int | None:
        """`window`, or None if no text outgrows it."""
        return None if window is None or window >= self.max_length else window

    def _plan(self, window: int | None) -> list[TreePlan]:
        """Layers of one window share a plan."""
        if window not in self._plans:
            tree = self.tree
            trees = Trees(
                self.page_table,
                self.context_lens,
                tree.indptr,
                tree.ancestor_bits,
                tree.depth,
                tree.max_nodes,
            )
            k_pages = self.cache.k_pages
            self._plans[window] = plan_trees(trees, self.cache.page_size, k_pages.dtype, window)
        return self._plans[window]


current_pass: ContextVar[TreePass | None] = ContextVar("current_pass", default=None)


@torch.compiler.disable  # a compiled layer is two pieces, before and behind its attention
def attend(
    module: nn.Module,
    query: Tensor,  # [1, heads, num_nodes, dim]
    key: Tensor,  # [1, kv_heads, num_nodes, dim]
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    tree_pass = current_pass.get()
    if tree_pass is None:
        raise RuntimeError("expected a pass of Target.logits; this model has no other attention")
    name = type(module).__name__
    if attention_mask is not None:
        raise UnsupportedModelError(
            f"{name}: expected no attention_mask, got one of the model's own"
        )
    if kwargs.get("position_bias") is not None:
        raise UnsupportedModelError(f"{name}: a position_bias; expected rotary positions alone")
    if s_aux is None and getattr(module, "sinks", None) is not None:
        raise UnsupportedModelError(f"{name}: expected its sinks as s_aux, got None")
    layer = module.layer_idx
    assert isinstance(layer, int)
    window = tree_pass.outgrown(tree_pass.windows[layer])
    given = kwargs.get("sliding_window")
    assert given is None or isinstance(given, int)
    if tree_pass.outgrown(given) != window:
        raise UnsupportedModelError(
            f"{name}, layer {layer}: expected a sliding window of {window}, as the configuration "
            f"says, got {given}"
        )
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    scale = query.shape[2] ** -0.5 if scaling is None else scaling
    scoring = Scoring(scale, window, softcap, s_aux)
    return tree_pass.run_layer(layer, query, key, value, scoring)[None], None


AttentionInterface.register(IMPLEMENTATION, attend)
