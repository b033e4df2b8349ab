"""What lies between a model's products, fused: norms, rotary positions, activations."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def compiled_layers(model: nn.Module) -> Iterator[None]:
    """Within, the decoder layers of a transformers model run as torch.compile makes them.

    Layers of one class share their code, so a model compiles as fast as two of its layers: once for
    passes of one row, once for all others. Products stay cuBLAS's, and numbers are rounded where
    the model's own code rounds them; only sums may be added up in another order.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = torch.compile(
            layer.forward, dynamic=True, options={"emulate_precision_casts": True}
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
