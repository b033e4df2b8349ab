"""What the roof does with a target that lies on a GPU, and that its parts fit together."""

import asyncio
from typing import Any

import pytest

from drafter.home import HomeDrafter
from wanspec_kernels.assembly import CAPACITIES, Pair, capture_passes
from wanspec_kernels.control.policies import AlwaysLocal
from wanspec_kernels.engine.model import CaptureError
from wanspec_kernels.engine.request import Limits
from wanspec_kernels.serving.service import ServiceConfig, VerifierService
from wanspec_kernels.wire.sampling import Sampling


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


def test_one_decoder_serves_both_rules() -> None:
    """Whichever a request asks for, its drafts are judged by it, and so some are accepted."""
    pair = Pair.load("bundled:target", "bundled:draft", "cpu")
    assert pair.home is not None
    service = VerifierService(
        pair.decoder(),
        vocabulary=pair.target.vocabulary,
        vocab_size=pair.target.vocab_size,
        home=HomeDrafter(pair.home),
        config=ServiceConfig(
            policy=AlwaysLocal(passes=3), limits=Limits(max_length=pair.target.max_length)
        ),
    )
    prompt = pair.target.tokenizer("def add(a, b):\n")["input_ids"]
    requests: list[dict[str, Any]] = [
        {"rule": "match"},
        {"rule": "rejection"},
        {"rule": "rejection", "replacement": True, "num_draws": 8, "temperature": 0.8},
        {"rule": "match"},
    ]

    async def accepted() -> list[int]:
        async with service:
            results = [
                await service.generate(prompt, max_tokens=12, sampling=Sampling(**r))
                for r in requests
            ]
        return [result.statistics.home_tokens_accepted for result in results]

    counts = asyncio.run(accepted())
    assert all(counts), counts
