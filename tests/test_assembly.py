"""What the roof does with a target that lies on a GPU, and that its parts fit together."""

import asyncio
from typing import Any

import pytest

from wanspec_kernels.assembly import CAPACITIES, Pair, capture_passes
from wanspec_kernels.engine.model import CaptureError
from wanspec_kernels.engine.model.capacity import smallest_that_holds
from wanspec_kernels.engine.model.graphs import MAX_GRAPHS
from wanspec_kernels.engine.request import Request
from wanspec_kernels.tree import DraftTree
from wanspec_kernels.wire.sampling import Sampling


class FakeTarget:
    def __init__(self, waits: bool) -> None:
        self.waits = waits
        self.captured: tuple[Any, ...] = ()

    def capture(self, capacities: tuple[Any, ...]) -> None:
        if self.waits:
            raise CaptureError("operation not permitted when stream is capturing")
        self.captured = capacities


def test_passes_of_one_tree_and_of_many_are_captured() -> None:
    target = FakeTarget(waits=False)
    capture_passes(target)  # type: ignore[arg-type]
    assert target.captured == CAPACITIES
    assert len(set(CAPACITIES)) <= MAX_GRAPHS
    for sizes, rows, batch in (([30], 32, 1), ([1] * 200, 256, 256), ([5, 64, 2], 96, 96)):
        capacity = smallest_that_holds(CAPACITIES, DraftTree.chains([[0] * n for n in sizes]))
        assert capacity is not None
        assert (capacity.num_nodes, capacity.batch) == (rows, batch)


def test_a_model_that_cannot_be_captured_goes_on_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    capture_passes(FakeTarget(waits=True))  # type: ignore[arg-type]
    assert "going on without CUDA graphs: operation not permitted" in caplog.text


def test_one_engine_serves_both_rules() -> None:
    """Whichever a request asks for, its drafts are judged by it, and so some are accepted."""
    pair = Pair.load("bundled:target", "bundled:draft", "cpu")
    prompt = tuple(pair.target.tokenizer("def add(a, b):\n")["input_ids"])
    samplings = [
        Sampling(rule="match"),
        Sampling(rule="rejection"),
        Sampling(rule="rejection", replacement=True, num_draws=8, temperature=0.8),
        Sampling(rule="match"),
    ]

    async def accepted() -> list[int]:
        async with pair.engine() as engine:
            streams = [engine.submit(Request(prompt, 40, sampling)) for sampling in samplings]
            for stream in streams:
                assert len([token async for token in stream]) == 40
        return [stream.statistics.home_tokens_accepted for stream in streams]

    counts = asyncio.run(accepted())
    assert all(counts), counts


def test_an_engine_without_home_has_the_targets_own_tokens() -> None:
    pair = Pair.load("bundled:target", "bundled:draft", "cpu")
    prompt = tuple(pair.target.tokenizer("def add(a, b):\n")["input_ids"])

    async def sources() -> set[int | None]:
        async with pair.engine(home=False) as engine:
            return {token.source async for token in engine.submit(Request(prompt, 12))}

    assert asyncio.run(sources()) == {None}


def test_drafters_that_dial_in_need_keys() -> None:
    pair = Pair.load("bundled:target", None, "cpu")
    with pytest.raises(ValueError, match="bind: expected the verifier's secret"):
        pair.engine(bind="tcp://127.0.0.1:*")
