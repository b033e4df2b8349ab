"""Which models tree attention can stand in for: rotary positions, causal softmax."""

from inspect import signature

from torch import nn
from transformers import PretrainedConfig


class UnsupportedModelError(ValueError):
    """The model attends in a way that tree attention does not; the message names it."""


def require_supported(model: nn.Module, config: PretrainedConfig, max_length: int) -> None:
    """Refuse what would run and give wrong logits, for texts of up to `max_length` tokens.

    Raises:
        UnsupportedModelError: names the feature.
    """
    feature = _unsupported_feature(model, config, max_length)
    if feature:
        raise UnsupportedModelError(f"{config.model_type}: {feature}")


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
    return _unsupported_layers(config) or _unsupported_rotation(config, max_length)


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
