"""What the roof does with a target that lies on a GPU."""

from typing import Any

import pytest

from wanspec_kernels.assembly import CAPACITIES, capture_passes
from wanspec_kernels.target import CaptureError


class FakeTarget:
    def __init__(self, waits: bool) -> None:
        self.waits = waits
        self.captured: tuple[Any, ...] = ()

    def capture(self, capacities: tuple[Any, ...]) -> None:
        if self.waits:
            raise CaptureError("operation not permitted when stream is capturing")
        self.captured = capacities


def test_passes_of_one_tree_are_captured() -> None:
    target = FakeTarget(waits=False)
    capture_passes(target)  # type: ignore[arg-type]
    assert target.captured == CAPACITIES
    assert all(c.batch == 1 and c.max_nodes == c.num_nodes for c in CAPACITIES)


def test_a_model_that_cannot_be_captured_goes_on_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    capture_passes(FakeTarget(waits=True))  # type: ignore[arg-type]
    assert "going on without CUDA graphs: operation not permitted" in caplog.text
