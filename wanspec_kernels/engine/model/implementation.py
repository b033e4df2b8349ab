"""Which of transformers' attention implementations a model runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PretrainedConfig


@contextmanager
def given_back_on_failure(model: nn.Module) -> Iterator[None]:
    """What fails within leaves the model with the attention that it came with."""
    before = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        yield
    except BaseException:
        for config, implementation in before:
            config._attn_implementation = implementation
        raise


def use_attention(model: nn.Module, implementation: str) -> None:
    """From the next pass on.

    transformers' `set_attn_implementation` would pass over classes whose source it cannot read.
    """
    for config in _configs(model):
        config._attn_implementation = implementation


def _configs(model: nn.Module) -> list[PretrainedConfig]:
    """Of all modules, a whole's before its parts': a part may have a copy of its own."""
    found = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            found[id(config)] = config
    return list(found.values())
