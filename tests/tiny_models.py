"""Tiny random models with a byte-level tokenizer, saved to a folder: loading them is real."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB_SIZE = 260  # every byte, and a few special tokens
ARCHITECTURES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def make_tiny_model(
    folder: Path, seed: int, *, arch: str = "llama", vocab_size: int = VOCAB_SIZE, **config: object
) -> Path:
    """Save a model and its tokenizer in `folder`; `config` overrides the model's settings."""
    settings: dict[str, object] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        # Wide enough that the next token depends on the whole path, not only on the last token.
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 256,
        "pad_token_id": 256,
    }
    config_class, model_class = ARCHITECTURES[arch]
    torch.manual_seed(seed)
    model_class(config_class(**(settings | config))).save_pretrained(folder)
    save_byte_tokenizer(folder, vocab_size)
    return folder


def save_byte_tokenizer(folder: Path, vocab_size: int = VOCAB_SIZE) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(alphabet)}
    vocabulary |= {f"<special{i}>": i for i in range(len(alphabet), vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<special256>").save_pretrained(
        folder
    )
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["type"] == "BPE"


def pad_vocabulary(source: Path, folder: Path, num_rows: int, seed: int = 0) -> Path:
    """Save the model of `source` with so many rows more, or fewer, than its tokenizer has tokens.

    What is added is as likely as a token, so that a model which is not stopped soon says one.
    """
    model = AutoModelForCausalLM.from_pretrained(source)
    before = model.config.vocab_size
    model.resize_token_embeddings(before + num_rows, mean_resizing=False)
    torch.manual_seed(seed)
    with torch.no_grad():
        for rows in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            rows[before:].normal_(std=0.4)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder
