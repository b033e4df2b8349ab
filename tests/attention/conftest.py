import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from wanspec_kernels.attention import launch

GUARD = 128


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the kernels write to, and their partial results, begin as NaN between guards of NaN."""
    buffers: list[Tensor] = []

    def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        size = math.prod(shape)
        buffer = torch.full((size + 2 * GUARD,), torch.nan, dtype=dtype, device=device)
        buffers.append(buffer)
        return buffer[GUARD : GUARD + size].view(shape)

    monkeypatch.setattr(launch, "_allocate", allocate)
    yield
    for buffer in buffers:
        assert buffer[:GUARD].isnan().all(), "written before an output"
        assert buffer[-GUARD:].isnan().all(), "written past an output"
