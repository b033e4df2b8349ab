"""DraftModel: a transformers model run over the nodes of several requests in one pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from drafter.key_values import KeyValueStore
from drafter.plan import Plan
from wanspec_kernels.models import resolve_device, resolve_model
from wanspec_kernels.wire.vocabulary import Tokenizer, fingerprint, vocabulary_size

log = logging.getLogger(__name__)

ATTENTION = "wanspec_draft"
# Attention kernels are quickest where rows are a multiple of this many keys.
KEY_ALIGNMENT = 16


@dataclass
class _Segment:
    """One request's share of the pass that is running."""

    start: int
    end: int
    width: int
    slots: Tensor
    store: KeyValueStore
    visible: Tensor  # [n, width] bool
    bias: Tensor | None = field(default=None)  # additive, for the packed heads of all layers


_running: ContextVar[list[_Segment]] = ContextVar("wanspec_draft_segments")


def _attention(
    module: Any,
    query: Tensor,  # [1, heads, n, head_dim]
    key: Tensor,  # [1, kv_heads, n, head_dim]
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"draft model: attention with {name} is not supported")
    layer = module.layer_idx
    heads, head_dim, kv_heads = query.shape[1], query.shape[3], key.shape[1]
    group = heads // kv_heads
    outputs = []
    for segment in _running.get():
        part = slice(segment.start, segment.end)
        n, width = segment.end - segment.start, segment.width
        segment.store.write(layer, segment.slots, key[0, :, part], value[0, :, part], width)
        keys, values = segment.store.read(layer, width)
        if segment.bias is None:
            bias = torch.zeros(n, width, dtype=query.dtype, device=query.device)
            bias.masked_fill_(~segment.visible, float("-inf"))
            segment.bias = bias.repeat(group, 1)
        # Heads of one group as more rows of the same keys: no kernel has to repeat the keys.
        packed = query[0, :, part].reshape(1, kv_heads, group * n, head_dim)
        out = F.scaled_dot_product_attention(
            packed, keys[None], values[None], attn_mask=segment.bias, scale=scaling
        )
        outputs.append(out.view(heads, n, -1))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
    return joined.transpose(0, 1)[None], None


class DraftModel:
    """A causal language model and its tokenizer's fingerprint.

    Every `run` is one forward of batch 1 in which the tokens of all requests stand side by side;
    the attention takes them apart again.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, name: str) -> None:
        self._model = model
        self.name = name
        self.vocabulary = fingerprint(tokenizer)
        config = model.config.get_text_config()
        # The tokenizer's, as texts and proposals have its tokens; the model may have other rows.
        self.vocab_size = vocabulary_size(tokenizer)
        self._num_rows: int = config.vocab_size
        self.max_positions: int = _max_positions(config)
        self.device: torch.device = model.device

    @classmethod
    def load(
        cls, name: str, *, device: str = "auto", dtype: torch.dtype | None = None
    ) -> DraftModel:
        """Load a hub id, a folder or a bundled name, without running any code that comes with it.

        `device` is "auto" (CUDA where there is one), "cpu" or "cuda"; `dtype` None is float32 on
        the CPU and bfloat16 on CUDA.

        Raises:
            ValueError: this machine has no such device, or there is no such model.
            NotImplementedError: the model's attention is of a kind this cannot run.
        """
        # Here, not above: it takes seconds, and torch brings Triton along if it is installed.
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.modeling_utils import AttentionInterface

        device, path = resolve_device(device), resolve_model(name)
        if dtype is None:
            dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        if device.startswith("cuda"):
            # It builds a plan, 50 ms, for every new number of slots, and every pass has another.
            torch.backends.cuda.enable_cudnn_sdp(False)
        AttentionInterface.register(ATTENTION, _attention)
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation=ATTENTION, use_safetensors=True
        )
        loaded = cls(model.to(device).eval().requires_grad_(False), tokenizer, name)
        loaded._probe()
        return loaded

    def new_store(self) -> KeyValueStore:
        return KeyValueStore()

    @torch.inference_mode()
    def run(self, batch: Sequence[tuple[KeyValueStore, Plan]]) -> Tensor:
        """[rows, vocab] float32 logits on the model's device: the plans' rows, one after another.

        The columns are tokens: what the model has beyond its tokenizer is left out. A token that
        the model has no row for is read as its last row, since a draft may be wrong.
        A pass that raises may have written keys and values at the plans' slots, and nowhere else.
        """
        tokens = np.concatenate([plan.token_ids for _, plan in batch]).clip(max=self._num_rows - 1)
        positions = np.concatenate([plan.positions for _, plan in batch])
        slots = np.concatenate([plan.slots for _, plan in batch])
        segments, start, wanted = [], 0, []
        # One transfer for the three.
        packed = torch.from_numpy(np.stack([tokens, positions, slots])).to(self.device)
        for store, plan in batch:
            n, used = plan.visible.shape
            width = -(-used // KEY_ALIGNMENT) * KEY_ALIGNMENT
            visible = np.zeros((n, width), dtype=np.bool_)
            visible[:, :used] = plan.visible
            on_device = torch.from_numpy(visible).to(self.device)
            segment = _Segment(
                start, start + n, width, packed[2, start : start + n], store, on_device
            )
            segments.append(segment)
            wanted.append(plan.rows + start)
            start += n
        rows = np.concatenate(wanted)
        keep = torch.from_numpy(rows).to(self.device)
        token = _running.set(segments)
        try:
            output = self._model(
                input_ids=packed[:1],
                position_ids=packed[1:2],
                use_cache=False,
                # A prompt's inner chunks want no logits at all, but models expect one row.
                logits_to_keep=keep if len(rows) else 1,
            )
        finally:
            _running.reset(token)
        logits: Tensor = output.logits[0, :, : self.vocab_size].float()
        return logits if len(rows) else logits[:0]

    def _probe(self) -> None:
        """One token through the model: what it cannot run shows at start, not in a request."""
        zero = np.zeros(1, dtype=np.int64)
        plan = Plan(zero, zero, zero, np.ones((1, 1), dtype=np.bool_), zero)
        store = self.new_store()
        logits = self.run([(store, plan)])
        if not store._layers:
            raise NotImplementedError(
                f"draft model {self.name}: expected attention through transformers' interface"
            )
        width = min(self.vocab_size, self._num_rows)
        if logits.shape != (1, width):
            raise NotImplementedError(
                f"draft model {self.name}: expected logits [1, {width}], got {list(logits.shape)}"
            )


def _max_positions(config: Any) -> int:
    """Texts stay inside every attention window: a slot's age is not in the mask."""
    layers = getattr(config, "layer_types", None) or []
    strange = set(layers) - {"full_attention", "sliding_attention"}
    if strange:
        raise NotImplementedError(f"draft model: layers of type {', '.join(sorted(strange))}")
    most = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    windowed = not layers or "sliding_attention" in layers
    if window and windowed and getattr(config, "use_sliding_window", True):
        most = min(most, int(window))
    return most
