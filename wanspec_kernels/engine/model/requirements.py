"""Which models tree attention can stand in for: rotary positions, causal softmax.

What is known to differ is refused by name; `self_check` finds the rest.
"""

from inspect import signature

import torch
from torch import nn
from transformers import PretrainedConfig

from wanspec_kernels.attention.checks import DTYPES, MAX_HEAD_DIM

# Read as one value for all layers.
_COMMON = (
    "head_dim",
    "hidden_size",
    "is_causal",
    "max_position_embeddings",
    "num_attention_heads",
    "num_key_value_heads",
    "rope_parameters",
    "sliding_window",
)


class UnsupportedModelError(ValueError):
    """The model attends in a way that tree attention does not; the message names it."""


def require_common(config: PretrainedConfig) -> None:
    """Refuse a configuration whose layers differ in what is read for all of them.

    Raises:
        UnsupportedModelError: names the attribute.
    """
    for name in _COMMON:
        try:
            getattr(config, name, None)
        except RuntimeError as error:  # "ambiguous", says transformers
            raise UnsupportedModelError(
                f"{config.model_type}: a {name} that differs by layer; expected the same in all "
                "layers, choose another model"
            ) from error


def require_supported(
    model: nn.Module, config: PretrainedConfig, max_length: int, dtype: torch.dtype
) -> None:
    """Refuse what would run and give wrong logits, for texts of up to `max_length` tokens.

    Raises:
        UnsupportedModelError: names the feature.
    """
    feature = _unsupported_feature(model, config, max_length)
    if dtype not in DTYPES:
        feature = f"weights of {dtype}; expected float32, float16 or bfloat16"
    if feature:
        raise UnsupportedModelError(f"{config.model_type}: {feature}")


def head_dim(config: PretrainedConfig) -> int:
    """
    Raises:
        UnsupportedModelError: it is larger than kernels take.
    """
    dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if dim > MAX_HEAD_DIM:
        raise UnsupportedModelError(
            f"{config.model_type}: a head_dim of {dim}; expected {MAX_HEAD_DIM} at most, choose "
            "another model"
        )
    return dim


def _unsupported_feature(model: nn.Module, config: PretrainedConfig, max_length: int) -> str:
    if config.is_encoder_decoder:
        return "an encoder-decoder; expected a decoder alone"
    if not getattr(model, "_supports_attention_backend", False):
        return "its code does not call transformers' attention interface"
    if getattr(config, "kv_lora_rank", None):
        return "latent attention (kv_lora_rank); expected keys and values for each head"
    if getattr(config, "use_bidirectional_attention", None) or not getattr(
        config, "is_causal", True
    ):
        return "bidirectional attention"
    if not any(type(module).__name__.endswith("RotaryEmbedding") for module in model.modules()):
        return "positions that are not rotary"
    return (
        _unsupported_layers(config)
        or _unsupported_rotation(config, max_length)
        or _unsupported_tuning(config, max_length)
    )


def layer_windows(config: PretrainedConfig) -> list[int | None]:
    """The sliding window of each layer, None where it sees everything."""
    # A stray entry of a config.json becomes an attribute, which the model knows nothing of.
    known = "sliding_window" in signature(type(config)).parameters
    window: int | None = config.sliding_window if known else None
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # a configuration without layer types applies its window everywhere
        return [window] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _unsupported_layers(config: PretrainedConfig) -> str:
    kinds = set(getattr(config, "layer_types", None) or ())
    others = kinds - {"full_attention", "sliding_attention"}
    if others:
        return (
            f"layers of type {', '.join(sorted(others))}; expected full_attention and "
            "sliding_attention"
        )
    return ""


def _unsupported_rotation(config: PretrainedConfig, max_length: int) -> str:
    """Frequencies that depend on the length of the text would not fit the keys already cached."""
    rotations = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in rotations:
        rotations = {"all": rotations}
    for parameters in rotations.values():  # some models have one for each type of layer
        if not isinstance(parameters, dict):
            continue
        kind = parameters.get("rope_type", "default")
        trained = parameters.get("original_max_position_embeddings")
        trained = trained or config.max_position_embeddings
        if kind in ("dynamic", "longrope") and max_length > trained:
            return (
                f"{kind} rotary positions, which change past {trained} tokens; "
                f"expected max_length={trained} at most (it is {max_length})"
            )
    return ""


def _unsupported_tuning(config: PretrainedConfig, max_length: int) -> str:
    """Llama 4 scales queries without rotary positions by their row in the pass, from one on."""
    rotary = getattr(config, "no_rope_layers", None) or ()  # 0 at layers that are not
    trained = getattr(config, "floor_scale", None)
    if not getattr(config, "attn_temperature_tuning", False) or trained is None or all(rotary):
        return ""
    if max_length < trained:
        return ""
    return (
        f"attn_temperature_tuning in layers without rotary positions, which begins at {trained} "
        f"tokens; expected max_length={trained - 1} at most (it is {max_length})"
    )
