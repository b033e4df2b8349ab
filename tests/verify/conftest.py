"""Outputs are poisoned, and guarded on both sides, in every test of this folder."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from wanspec_kernels.verify import operators

POISON = -77
GUARD = 64


@pytest.fixture(autouse=True)
def guarded_outputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., object]]:
    """Yields the real allocation, for a test that cannot do with buffers' views."""
    buffers: list[Tensor] = []

    def guarded(real: Tensor) -> Tensor:
        size = real.numel()
        buffer = torch.full((size + 2 * GUARD,), POISON, dtype=real.dtype, device=real.device)
        buffers.append(buffer)
        return buffer[GUARD : GUARD + size].view(real.shape)

    allocate = operators._allocate
    monkeypatch.setattr(operators, "_allocate", lambda *a: tuple(map(guarded, allocate(*a))))
    yield allocate
    for buffer in buffers:
        assert (buffer[:GUARD] == POISON).all(), "written before an output"
        assert (buffer[-GUARD:] == POISON).all(), "written past an output"
        assert not (buffer[GUARD:-GUARD] == POISON).any(), "an output entry left unwritten"
