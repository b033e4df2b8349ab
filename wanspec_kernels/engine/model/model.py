"""Target: a causal language model of transformers, its pages, and its logits over trees."""

from collections.abc import Iterable
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from wanspec_kernels.attention.checks import PAGE_SIZES, is_page_size
from wanspec_kernels.engine.model.attention_hook import IMPLEMENTATION, TreePass, current_pass
from wanspec_kernels.engine.model.capacity import Capacity
from wanspec_kernels.engine.model.checks import check_batch, check_values
from wanspec_kernels.engine.model.compiled import compiled_layers
from wanspec_kernels.engine.model.graphs import PassGraphs
from wanspec_kernels.engine.model.implementation import given_back_on_failure
from wanspec_kernels.engine.model.merged import merge_projections
from wanspec_kernels.engine.model.requirements import (
    UnsupportedModelError,
    head_dim,
    layer_windows,
    require_common,
    require_supported,
)
from wanspec_kernels.engine.model.self_check import check_against_own
from wanspec_kernels.kv_cache import PagedKVCache
from wanspec_kernels.tree import DraftTree
from wanspec_kernels.wire.vocabulary import fingerprint, vocabulary_size


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
        """Take over a model, whichever attention it was loaded with.

        It runs tree attention from then on, in no other passes than those of `logits`. A small tree
        is compared with the model's own attention first, which takes a few short passes. Then its
        query, key and value projections, and those of gate and up, become one product each, in
        place: `merge_projections` says which.

        `num_pages` of `page_size` slots, 16 or a larger power of two, serve all requests together.
        `max_length` bounds one request's tokens, its tree included; None is what pages and model
        allow. `attention_backend` is that of `tree_attention`.

        Raises:
            UnsupportedModelError: the model's attention is not what tree attention computes. It is
                left as it came.
            ValueError: kernels do not read pages of `page_size` slots.
        """
        if not is_page_size(page_size):
            raise ValueError(f"page_size: expected {PAGE_SIZES}, got {page_size}")
        config = model.config.get_text_config()
        require_common(config)
        limits = [num_pages * page_size, getattr(config, "max_position_embeddings", None)]
        self.max_length = min(n for n in (*limits, max_length) if n is not None)
        require_supported(model, config, self.max_length, model.dtype)
        self.model = model.eval()
        self.tokenizer = tokenizer
        # Many models have more rows than tokens. What lies past `vocab_size` is never chosen.
        self.head_width: int = config.vocab_size
        self.vocab_size = self.head_width
        if tokenizer is not None:
            self.vocab_size = min(self.vocab_size, vocabulary_size(tokenizer))
        self._num_layers: int = config.num_hidden_layers
        self._windows = layer_windows(config)
        self._graphs: PassGraphs | None = None
        self._attention_backend = attention_backend
        self.cache = PagedKVCache(
            self._num_layers,
            num_pages,
            page_size,
            getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            head_dim(config),
            model.dtype,
            model.device,
        )
        outgrown = [w for w in self._windows if w is not None and w < self.max_length]
        with given_back_on_failure(model):
            check_against_own(self, IMPLEMENTATION, min(outgrown, default=None))
        merge_projections(model)  # A model that is refused is left as it came.

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

    @cached_property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end a text: each one of the generation configuration, and the tokenizer's."""
        found: set[int] = set()
        for source in (getattr(self.model, "generation_config", None), self.tokenizer):
            ids = getattr(source, "eos_token_id", None)
            found.update(() if ids is None else [ids] if isinstance(ids, int) else ids)
        return frozenset(found)

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
            rows: [count] int32 on the same device: only these rows are wanted, and unless the pass
                was captured only they go through the model's head; None: all.

        Returns:
            [num_nodes, width of the head], or [count, width] of `rows`, of the model's dtype:
            row i scores the token that follows node i, and is -inf from ``vocab_size`` on, where
            there are no tokens. Those of a captured pass stay until the next one.

        Raises:
            ValueError: a tensor has another shape, dtype or device than said above; and on the
                CPU, where values can be read at once, one lies outside of its range.
        """
        check_batch(tree, context_lens, page_table, self.cache)
        if self.device.type == "cpu":
            check_values(
                tree,
                context_lens,
                page_table,
                self.cache,
                vocab_size=self.vocab_size,
                max_length=self.max_length,
                windows=self._windows,
            )
        graph = None if self._graphs is None else self._graphs.fitting(tree, page_table)
        if graph is not None:
            logits = graph.replay(tree, context_lens, page_table)
            # All rows went through the head, which saves less than a replay does in small passes.
            return logits if rows is None else logits.index_select(0, rows)
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
        if logits.shape[1] > self.vocab_size:
            # In place: a slice would leave rows whose length suits the kernels less.
            logits[:, self.vocab_size :] = -torch.inf
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
