"""Target: a causal language model of transformers, its pages, and its logits over trees."""

from collections.abc import Iterable
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from wanspec_kernels.kv_cache import PagedKVCache
from wanspec_kernels.target.attention_hook import IMPLEMENTATION, TreePass, current_pass
from wanspec_kernels.target.capacity import Capacity
from wanspec_kernels.target.compiled import compiled_layers
from wanspec_kernels.target.graphs import PassGraphs
from wanspec_kernels.target.merged import merge_projections
from wanspec_kernels.target.requirements import (
    UnsupportedModelError,
    layer_windows,
    require_supported,
)
from wanspec_kernels.tree import DraftTree
from wanspec_kernels.vocabulary import fingerprint


class Target:
    """A model whose attention is tree attention over `cache`. Used by one thread at a time.

    >>> target = Target.load("Qwen/Qwen3-8B", device="cuda")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any = None,
        *,
        num_pages: int = 512,
        page_size: int = 16,
        max_length: int | None = None,
        attention_backend: str = "auto",
    ) -> None:
        """Take a model loaded with ``attn_implementation="wanspec_tree"``, as `load` does.

        Its query, key and value projections, and those of gate and up, become one product each, in
        place: `merge_projections` says which.

        `num_pages` of `page_size` slots serve all requests together. `max_length` bounds one
        request's tokens, its tree included; None is what pages and model allow.
        `attention_backend` is that of `tree_attention`.

        Raises:
            UnsupportedModelError: the model's attention is not what tree attention computes.
        """
        config = model.config.get_text_config()
        limits = [num_pages * page_size, getattr(config, "max_position_embeddings", None)]
        self.max_length = min(n for n in (*limits, max_length) if n is not None)
        require_supported(model, config, self.max_length)
        merge_projections(model)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.vocab_size: int = config.vocab_size
        self._num_layers: int = config.num_hidden_layers
        self._windows = layer_windows(config)
        self._graphs: PassGraphs | None = None
        self._attention_backend = attention_backend
        heads = config.num_attention_heads
        self.cache = PagedKVCache(
            self._num_layers,
            num_pages,
            page_size,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            model.dtype,
            model.device,
        )

    @classmethod
    def load(
        cls,
        name_or_path: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        num_pages: int = 512,
        page_size: int = 16,
        max_length: int | None = None,
    ) -> "Target":
        """Load model and tokenizer of a folder or hub name; `dtype` is float32 on CPU, else
        bfloat16.

        Raises:
            UnsupportedModelError: the model's attention is not what tree attention computes.
        """
        device = torch.device(device)
        if dtype is None:
            dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        try:
            model = AutoModelForCausalLM.from_pretrained(
                name_or_path, dtype=dtype, attn_implementation=IMPLEMENTATION
            )
        except (KeyError, ValueError) as error:
            if IMPLEMENTATION not in str(error):
                raise
            raise UnsupportedModelError(
                f"{name_or_path}: its code does not call transformers' attention interface"
            ) from error
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        return cls(
            model.to(device),
            tokenizer,
            num_pages=num_pages,
            page_size=page_size,
            max_length=max_length,
        )

    @property
    def device(self) -> torch.device:
        return self.cache.k_pages.device

    @cached_property
    def vocabulary(self) -> bytes:
        """Fingerprint of the tokenizer's vocabulary, 32 bytes."""
        return fingerprint(self.tokenizer)

    def capture(self, capacities: Iterable[Capacity], *, compiled: bool = False) -> None:
        """Capture a pass for each capacity in a CUDA graph; `logits` replays them from then on.

        A batch runs in the graph with the fewest rows that has room for it, and without one where
        none has. Graphs hold their logits, [num_nodes, vocab_size] each. Replaces earlier ones.

        `compiled`: by torch.compile, which takes a minute or so, and fuses what a model's code
        launches one by one: half as many kernels a pass, or fewer.

        Raises:
            ValueError: there are more than 32 capacities.
            RuntimeError: the model is not on a CUDA device.
            CaptureError: the model's code waits for the device; nothing is captured then.
        """
        self._graphs = None
        if self.device.type != "cuda":
            raise RuntimeError(f"capture: expected a model on cuda, got {self.device}")
        max_pages = -(-self.max_length // self.cache.page_size)
        layers = compiled_layers(self.model) if compiled else nullcontext()
        with torch.inference_mode(), layers:
            self._graphs = PassGraphs(self._launch, capacities, max_pages, self.device)

    @torch.inference_mode()
    def logits(
        self,
        tree: DraftTree,
        context_lens: Tensor,
        page_table: Tensor,
        *,
        rows: Tensor | None = None,
    ) -> Tensor:
        """One pass over all trees; their keys and values are left in the pages.

        Args:
            tree: trees on the target's device, token ids below ``vocab_size``, -1 in padding.
            context_lens: [batch] int32; node i of tree b is written to slot ``context_lens[b] + i``
                and has position ``context_lens[b] + depth``.
            page_table: [batch, max_pages] int32, with pages for every slot of context and tree.
            rows: [count] int32 on the same device: only these rows go through the model's head;
                None: all.

        Returns:
            [num_nodes, vocab_size], or [count, vocab_size] of `rows`, of the model's dtype: row i
            scores the token that follows node i. Those of a captured pass stay until the next one.
        """
        if self._graphs is not None and rows is None:
            graph = self._graphs.fitting(tree, page_table)
            if graph is not None:
                return graph.replay(tree, context_lens, page_table)
        return self._launch(tree, context_lens, page_table, rows)

    def _launch(
        self,
        tree: DraftTree,
        context_lens: Tensor,
        page_table: Tensor,
        rows: Tensor | None = None,
    ) -> Tensor:
        """As `logits`, launched from Python."""
        run = TreePass(
            tree,
            context_lens,
            page_table,
            self.cache,
            self._windows,
            self.max_length,
            self._attention_backend,
        )
        token = current_pass.set(run)
        try:
            output = self.model(
                input_ids=tree.token_ids.clamp(min=0)[None],  # padding may hold -1
                position_ids=self._positions(tree, context_lens)[None],
                use_cache=False,
                logits_to_keep=0 if rows is None else rows,
            )
        finally:
            current_pass.reset(token)
        if run.layers_run != self._num_layers:
            raise UnsupportedModelError(
                f"{self.model.config.model_type}: expected tree attention in {self._num_layers} "
                f"layers, it ran in {run.layers_run}"
            )
        logits: Tensor = output.logits[0]
        return logits

    def prefill(self, request: int, token_ids: list[int], chunk: int = 256) -> None:
        """Fill the first slots of `request` from `token_ids`, `chunk` of them a pass."""
        self.cache.reserve(request, len(token_ids))
        page_table = self.cache.page_table([request])
        for start in range(0, len(token_ids), chunk):
            tree = DraftTree.chains([token_ids[start : start + chunk]], self.device)
            context_lens = torch.tensor([start], dtype=torch.int32).to(self.device)
            self.logits(tree, context_lens, page_table, rows=tree.indptr[:1])

    @staticmethod
    def _positions(tree: DraftTree, context_lens: Tensor) -> Tensor:
        if tree.batch == 1:
            return (context_lens + tree.depth.clamp(min=0)).long()
        rows = torch.arange(tree.num_nodes, device=tree.device, dtype=torch.int32)
        b = torch.searchsorted(tree.indptr, rows, right=True) - 1
        b = b.clamp(max=tree.batch - 1)
        return (context_lens[b] + tree.depth.clamp(min=0)).long()
