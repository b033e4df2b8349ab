"""A target's logits over trees are the model's own on every path; other models are refused."""

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.model.architectures import (
    SUPPORTED,
    VOCAB,
    make_config,
    make_pair,
    own_logits,
    run_trees,
)
from tests.paged_trees import random_trees, to_device
from tests.tiny_models import make_tiny_model
from wanspec_kernels.attention.arguments import Scoring
from wanspec_kernels.engine.model import Target, UnsupportedModelError, attention_hook
from wanspec_kernels.tree import DraftTree


@pytest.mark.parametrize("name", SUPPORTED)
def test_logits_are_the_models_own(name: str, device: str) -> None:
    plain, target = make_pair(*SUPPORTED[name], device)
    rng = random.Random(1)
    texts = [[rng.randrange(VOCAB) for _ in range(n)] for n in (3, 40, 0)]
    tree = random_trees([1, 14, 6], rng, VOCAB)
    logits, paths = run_trees(target, texts, tree, chunk=16)
    for row, expected in zip(logits, own_logits(plain, paths, device), strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-5 * scale)


def test_padding_does_not_matter(device: str) -> None:
    """Rows of -1 past the last tree, as a captured graph of fixed capacity has them."""
    _, target = make_pair("Llama", {}, device)
    tree = random_trees([4, 3], random.Random(1), VOCAB)
    expected, _ = run_trees(target, [[1, 2], [3]], tree, chunk=16)
    pad = torch.full((3,), -1, dtype=torch.int32)
    padded = replace(
        tree, token_ids=torch.cat([tree.token_ids, pad]), parents=torch.cat([tree.parents, pad])
    )
    lens = torch.tensor([2, 1], dtype=torch.int32, device=device)
    table = target.cache.page_table([0, 1])
    logits = target.logits(to_device(padded, device), lens, table)
    assert logits.shape[0] == 10
    torch.testing.assert_close(logits[:7], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_in_half_precision(dtype: torch.dtype, device: str) -> None:
    plain, target = make_pair("Llama", {}, device, dtype)
    rng = random.Random(2)
    logits, paths = run_trees(
        target, [[rng.randrange(VOCAB) for _ in range(30)]], random_trees([9], rng, VOCAB), chunk=64
    )
    assert logits.dtype == dtype
    for row, expected in zip(logits, own_logits(plain, paths, device), strict=True):
        error = (row - expected).float().norm() / expected.float().norm()
        assert error < (0.03 if dtype == torch.bfloat16 else 0.004)


LLAMA4 = {
    "layer_types": ["full_attention"] * 2,
    "no_rope_layers": [1, 0],
    "num_local_experts": 2,
    "intermediate_size_mlp": 40,
}
GEMMA4 = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 8,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "global_head_dim": 32,
}
UNSUPPORTED = {
    "not rotary": (
        transformers.GPT2Config(
            vocab_size=VOCAB, n_embd=36, n_head=3, n_layer=1, bos_token_id=None, eos_token_id=None
        ),
        "gpt2: positions that are not rotary",
    ),
    "latent": (
        make_config("DeepseekV3", head_dim=None, n_routed_experts=8),
        "deepseek_v3: latent attention",
    ),
    "chunked": (make_config("Llama4Text"), "llama4_text: layers of type chunked_attention"),
    "tuned by position": (
        make_config("Llama4Text", **LLAMA4, floor_scale=100),
        "llama4_text: attn_temperature_tuning in layers without rotary positions, which begins at "
        r"100 tokens; expected max_length=99 at most \(it is 100\)",
    ),
    "heads of two sizes": (
        make_config("Gemma4Text", **GEMMA4),
        "gemma4_text: a head_dim that differs by layer; expected the same in all layers",
    ),
    "other heads than it says": (
        transformers.GPTNeoXConfig(
            vocab_size=VOCAB,
            hidden_size=48,
            intermediate_size=40,
            num_attention_heads=3,
            num_key_value_heads=1,  # which the model knows nothing of
            num_hidden_layers=1,
        ),
        r"layer 0: expected \[1, 16\] keys and values a node, .* got \[3, 16\] and \[3, 16\]",
    ),
    "heads too large": (
        make_config("Llama", head_dim=512),
        "llama: a head_dim of 512; expected 256 at most",
    ),
    "float64": (
        make_config("Llama", dtype=torch.float64),
        "llama: weights of torch.float64; expected float32, float16 or bfloat16",
    ),
    "bidirectional": (
        make_config("Gemma", use_bidirectional_attention=True),
        "gemma: bidirectional attention",
    ),
    "stretching": (
        make_config(
            "Phi3",
            hidden_size=96,
            original_max_position_embeddings=64,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
            },
        ),
        "phi3: longrope rotary positions, which change past 64 tokens; expected max_length=64",
    ),
    "stretching in some layers": (
        make_config(
            "Gemma3Text",
            rope_parameters={
                "full_attention": {
                    "rope_type": "dynamic",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "original_max_position_embeddings": 64,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
        "gemma3_text: dynamic rotary positions, which change past 64 tokens",
    ),
    "alibi": (
        transformers.BloomConfig(
            vocab_size=VOCAB, hidden_size=36, n_head=3, n_layer=1, pad_token_id=None
        ),
        "bloom: its code does not call transformers' attention interface",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_refuses_what_tree_attention_lacks(name: str) -> None:
    config, message = UNSUPPORTED[name]
    model = AutoModelForCausalLM.from_config(config, attn_implementation="wanspec_tree")
    with pytest.raises(UnsupportedModelError, match=message):
        Target(model, num_pages=40, max_length=100)


@dataclass
class WatchedPass(attention_hook.TreePass):
    """Keeps the window of each layer that is run."""

    seen: list[int | None] = field(default_factory=list)

    def run_layer(
        self, layer: int, query: Tensor, keys: Tensor, values: Tensor, scoring: Scoring
    ) -> Tensor:
        self.seen.append(scoring.window)
        return super().run_layer(layer, query, keys, values, scoring)


def test_a_window_no_text_outgrows_is_none() -> None:
    """So that the fastest kernels, which know no window, may run."""
    config = make_config("Mistral", sliding_window=64)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="wanspec_tree")
    tree = DraftTree.build([((1, 2), (-1, 0))])
    place = (torch.zeros(1, dtype=torch.int32), torch.arange(5, dtype=torch.int32)[None])
    for max_length, window in ((64, None), (65, 64)):
        target = Target(model, num_pages=5, max_length=max_length)
        windows = [64] * config.num_hidden_layers
        run = WatchedPass(tree, *place, target.cache, windows, max_length)
        token = attention_hook.current_pass.set(run)
        try:
            model(input_ids=tree.token_ids[None], position_ids=tree.depth[None], use_cache=False)
        finally:
            attention_hook.current_pass.reset(token)
        assert run.seen == [window] * config.num_hidden_layers


def test_a_model_with_a_mask_of_its_own() -> None:
    config = make_config("Doge", hidden_size=96)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="wanspec_tree")
    with pytest.raises(UnsupportedModelError, match="DogeAttention: expected no attention_mask"):
        Target(model, num_pages=5)


def test_a_model_that_contradicts_its_configuration() -> None:
    config = make_config("Mistral", sliding_window=8)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="wanspec_tree")
    target = Target(model, num_pages=5)
    for window in (9, None):
        model.config.sliding_window = window
        with pytest.raises(
            UnsupportedModelError,
            match=rf"MistralAttention, layer 0: expected a sliding window of 8, .* got {window}",
        ):
            target.prefill(0, [1, 2])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Llama4Text", {**LLAMA4, "floor_scale": 201}),  # no text is so long
        ("Gemma4Text", {**GEMMA4, "global_head_dim": 16}),
    ],
)
def test_relatives_of_what_is_refused(name: str, changes: dict[str, object], device: str) -> None:
    plain, target = make_pair(name, changes, device)
    texts, tree = [list(range(20, 60))], random_trees([9], random.Random(3), VOCAB)
    logits, paths = run_trees(target, texts, tree, chunk=16)
    expected = own_logits(plain, paths, device)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("page_size", [0, 8, 24, -16])
def test_pages_that_kernels_do_not_read(page_size: int) -> None:
    model = AutoModelForCausalLM.from_config(make_config("Llama"))
    with pytest.raises(ValueError, match=rf"page_size: expected 16, 32, 64, ..., got {page_size}"):
        Target(model, num_pages=4, page_size=page_size)


BAD_BATCHES: dict[str, tuple[dict[str, Tensor], str]] = {
    "one length": (
        {"context_lens": torch.tensor([3], dtype=torch.int32)},
        r"context_lens: expected \[2\] int32, got \[1\] torch.int32",
    ),
    "long lengths": (
        {"context_lens": torch.tensor([3, 2])},
        r"context_lens: expected \[2\] int32, got \[2\] torch.int64",
    ),
    "one row of pages": (
        {"page_table": torch.tensor([[0]], dtype=torch.int32)},
        r"page_table: expected \[2, max_pages\] int32, got \[1, 1\] torch.int32",
    ),
    "flat pages": (
        {"page_table": torch.tensor([0, 1], dtype=torch.int32)},
        r"page_table: expected \[2, max_pages\] int32, got \[2\] torch.int32",
    ),
    "elsewhere": (
        {"page_table": torch.zeros(2, 1, dtype=torch.int32, device="meta")},
        "page_table: expected on .* as the model, got meta",
    ),
}
BAD_VALUES: dict[str, tuple[dict[str, Tensor], str]] = {
    "a context below 0": (
        {"context_lens": torch.tensor([3, -1], dtype=torch.int32)},
        r"context_lens: expected a tree within 0\.\.100 tokens .* got -1 and 2 levels of request 1",
    ),
    "too long a text": (
        {"context_lens": torch.tensor([3, 99], dtype=torch.int32)},
        r"context_lens: expected a tree within 0\.\.100 tokens .* got 99 and 2 levels of request 1",
    ),
    "too few pages": (
        {"context_lens": torch.tensor([3, 15], dtype=torch.int32)},
        r"page_table: expected 2 pages of 0\.\.9 for the 18 slots of request 1, got 1",
    ),
    "no page": (
        {"page_table": torch.tensor([[0], [-1]], dtype=torch.int32)},
        r"page_table: expected 1 pages of 0\.\.9 for the 5 slots of request 1, got page -1",
    ),
    "a page beyond the last": (
        {"page_table": torch.tensor([[0], [10]], dtype=torch.int32)},
        r"page_table: expected 1 pages of 0\.\.9 for the 5 slots of request 1, got page 10",
    ),
}


@pytest.mark.parametrize("name", BAD_BATCHES | BAD_VALUES)
def test_a_batch_whose_parts_do_not_match(name: str, device: str) -> None:
    if name in BAD_VALUES and device != "cpu":
        pytest.skip("nothing may wait for a GPU to look at values")
    model = AutoModelForCausalLM.from_config(make_config("Llama")).to(device)
    target = Target(model, num_pages=10, max_length=100)
    changes, message = (BAD_BATCHES | BAD_VALUES)[name]
    batch = {
        "context_lens": torch.tensor([3, 2], dtype=torch.int32),
        "page_table": torch.tensor([[0], [1]], dtype=torch.int32),
    } | changes
    batch = {key: x if x.device.type == "meta" else x.to(device) for key, x in batch.items()}
    tree = DraftTree.build([([1, 2], [-1, 0]), ([3, 4, 5], [-1, 0, 0])], device)
    with pytest.raises(ValueError, match=message):
        target.logits(tree, **batch)


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_a_token_that_the_model_lacks(token: int) -> None:
    model = AutoModelForCausalLM.from_config(make_config("Llama"))
    target = Target(model, num_pages=10)
    tree = DraftTree(
        *(torch.tensor(x, dtype=torch.int32) for x in ([1, token], [-1, 0], [0, 2])), 2, 1
    )
    zero = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=rf"tree: expected token ids of 0\.\.96, got {token}"):
        target.logits(tree, zero, zero[None])


def test_refuses_code_without_the_interface(tmp_path: Path) -> None:
    config = transformers.FalconConfig(
        vocab_size=VOCAB, hidden_size=48, num_attention_heads=3, num_hidden_layers=1
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="does not call transformers' attention"):
        Target.load(str(tmp_path))


def test_load(tmp_path: Path, device: str) -> None:
    make_tiny_model(tmp_path, seed=0)
    target = Target.load(str(tmp_path), device=device, num_pages=8, page_size=32)
    assert target.model.dtype == (torch.bfloat16 if device == "cuda" else torch.float32)
    assert (target.vocab_size, target.max_length, target.device.type) == (260, 256, device)
    assert len(target.vocabulary) == 32
    other = Target.load(str(tmp_path), dtype=torch.float16, max_length=100)
    assert other.cache.k_pages.dtype == torch.float16
    assert other.max_length == 100
    assert other.vocabulary == target.vocabulary


def test_the_model_cannot_run_without_a_pass(tmp_path: Path) -> None:
    target = Target.load(str(make_tiny_model(tmp_path, seed=0)), num_pages=2)
    with pytest.raises(RuntimeError, match=r"expected a pass of Target\.logits"):
        target.model(input_ids=torch.tensor([[1, 2]]))
