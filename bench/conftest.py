"""What the benchmarks share: a device, random trees, and a clock that waits for the device.

Every benchmark first compares what it times with the oracle on the same inputs.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from wanspec_kernels.tree import DraftTree


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def timed(benchmark: Any, device: torch.device) -> Callable[[Callable[[], Any]], None]:
    """Times a call as its caller waits for it: launched from Python, then synchronised."""
    if device.type == "cuda":
        benchmark.extra_info["gpu"] = torch.cuda.get_device_name()
    benchmark.extra_info["torch"] = torch.__version__

    def run(call: Callable[[], Any]) -> None:
        def once() -> None:
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()

        benchmark.pedantic(once, warmup_rounds=5, rounds=50)

    return run


def random_tree(num_nodes: int, vocab_size: int, seed: int) -> tuple[list[int], list[int]]:
    """A tree such as best-first growth gives: a node hangs from one of the few before it."""
    generator = random.Random(seed)
    parents = [-1] + [generator.randrange(max(0, i - 8), i) for i in range(1, num_nodes)]
    return [generator.randrange(vocab_size) for _ in parents], parents


def random_trees(batch: int, num_nodes: int, vocab_size: int, device: torch.device) -> DraftTree:
    trees = [random_tree(num_nodes, vocab_size, seed) for seed in range(batch)]
    return DraftTree.build(trees, device)
