"""Small models of published architectures, and what they say of texts and trees."""

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from tests.paged_trees import to_device
from wanspec_kernels.engine.model import Target
from wanspec_kernels.tree import DraftTree

VOCAB = 97
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 36,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def make_config(name: str, **changes: object) -> PretrainedConfig:
    config_class = getattr(transformers, f"{name}Config")
    config: PretrainedConfig = config_class(**(SIZES | changes))
    return config


SLIDING_AND_FULL = ["sliding_attention", "full_attention"]
# Odd head counts, groups of 1 and 3, heads wider than hidden_size / heads, tied and untied
# embeddings.
SUPPORTED = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama of 3 layers, 5 heads": (
        "Llama",
        {
            "num_hidden_layers": 3,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "hidden_size": 40,
        },
    ),
    "qwen2, biased": ("Qwen2", {}),
    "qwen3, normalised": ("Qwen3", {"tie_word_embeddings": False}),
    "mistral": ("Mistral", {"sliding_window": None, "num_key_value_heads": 1}),
    "gemma": ("Gemma", {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32}),
    "phi3, fused projections": ("Phi3", {}),
    "granite, scaled": ("Granite", {"attention_multiplier": 0.1, "logits_scaling": 2.0}),
    "nemotron, keeps arguments from its attention": ("Nemotron", {}),
    "mixtral": ("Mixtral", {"sliding_window": None, "num_local_experts": 4}),
    "llama, with a stray window": ("Llama", {"sliding_window": 8}),
    "mistral, sliding": ("Mistral", {"sliding_window": 11}),
    "phi3, sliding": ("Phi3", {"sliding_window": 5}),
    "qwen2, some layers sliding": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "cohere2": ("Cohere2", {"sliding_window": 7, "layer_types": SLIDING_AND_FULL}),
    "olmo3": ("Olmo3", {"sliding_window": 9, "layer_types": SLIDING_AND_FULL}),
    "gemma2, soft-capped": (
        "Gemma2",
        {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 4, "sliding_window": 8},
    ),
    "gemma3": ("Gemma3Text", {"sliding_window": 8, "layer_types": SLIDING_AND_FULL}),
    "gpt_oss, sinks": (
        "GptOss",
        {"sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}


def make_pair(
    name: str,
    changes: dict[str, object],
    device: str,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> tuple[torch.nn.Module, Target]:
    """The model as transformers runs it, and a target of the same weights."""
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(make_config(name, **changes)).eval()
    for parameter in plain.parameters():
        if parameter.dim() == 1:  # biases of 0 and norms of 1 would hide what is left out
            torch.nn.init.normal_(parameter, 0.5, 0.5)
    plain.set_attn_implementation("eager")
    model = AutoModelForCausalLM.from_config(
        make_config(name, **changes), attn_implementation="wanspec_tree"
    )
    model.load_state_dict(plain.state_dict())
    model = model.to(device, dtype)
    target = Target(model, num_pages=40, max_length=200, attention_backend=backend)
    return plain.to(device, dtype), target


def fill_contexts(
    target: Target, texts: list[list[int]], tree: DraftTree, chunk: int
) -> tuple[Tensor, Tensor]:
    """Requests 0, 1, ... with the contexts `texts` and room for their trees: their lengths and
    page table."""
    bounds = tree.indptr.tolist()
    for b, text in enumerate(texts):
        target.prefill(b, text, chunk)
        target.cache.reserve(b, len(text) + bounds[b + 1] - bounds[b])
    lens = torch.tensor([len(text) for text in texts], dtype=torch.int32, device=target.device)
    return lens, target.cache.page_table(range(len(texts)))


def paths_of(texts: list[list[int]], tree: DraftTree) -> list[list[int]]:
    """The whole text of every node."""
    bounds, tokens, parents = (x.tolist() for x in (tree.indptr, tree.token_ids, tree.parents))
    paths: list[list[int]] = []
    for b, text in enumerate(texts):
        for row in range(bounds[b], bounds[b + 1]):
            above = text if parents[row] < 0 else paths[bounds[b] + parents[row]]
            paths.append([*above, tokens[row]])
    return paths


def run_trees(
    target: Target, texts: list[list[int]], tree: DraftTree, chunk: int
) -> tuple[Tensor, list[list[int]]]:
    """Logits after the contexts `texts`, and the whole text of every node."""
    lens, page_table = fill_contexts(target, texts, tree, chunk)
    logits = target.logits(to_device(tree, str(target.device)), lens, page_table)
    return logits, paths_of(texts, tree)


def own_logits(plain: torch.nn.Module, paths: list[list[int]], device: str) -> Tensor:
    """[paths, vocab] of the model as transformers runs it, a text at a time."""
    with torch.inference_mode():
        rows = [plain(input_ids=torch.tensor([p], device=device)).logits[0, -1] for p in paths]
    return torch.stack(rows)
