"""What the benchmarks share: a device, shapes for it, random trees, and a clock that waits for it.

Every benchmark first compares what it times with the oracle on the same inputs.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from bench import machine
from wanspec_kernels.tree import DraftTree

ON_GPU = torch.cuda.is_available()
MACHINE = machine.describe()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    machine_info["wanspec"] = MACHINE


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture
def timed(benchmark: Any, device: torch.device) -> Callable[[Callable[[], Any]], None]:
    """Times a call as its caller waits for it: launched from Python, then synchronised."""
    benchmark.extra_info |= {
        name: MACHINE.get(name) for name in ("gpu", "cpu", "torch", "triton", "commit")
    }

    def run(call: Callable[[], Any]) -> None:
        def once() -> None:
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()

        warmup, rounds = (5, 50) if device.type == "cuda" else (1, 10)
        benchmark.pedantic(once, warmup_rounds=warmup, rounds=rounds)

    return run


def shapes(cpu: Sequence[tuple[int, ...]], gpu: Sequence[tuple[int, ...]]) -> list[Any]:
    """Parameters of both kinds; those of the other kind of machine are skipped with a reason."""
    not_here = pytest.mark.skip(
        reason="a CPU's shape: CUDA is here" if ON_GPU else "a GPU's shape: no CUDA device here"
    )
    skipped, run = (cpu, gpu) if ON_GPU else (gpu, cpu)
    return [pytest.param(*shape) for shape in run] + [
        pytest.param(*shape, marks=not_here) for shape in skipped
    ]


def backend_or_skip(call: Callable[[str], Any], backend: str) -> None:
    """Skip, with the library's own reason, if `call` cannot run on `backend` here."""
    try:
        call(backend)
    except (RuntimeError, ValueError, ImportError) as error:
        pytest.skip(str(error).splitlines()[0])


def random_tree(num_nodes: int, vocab_size: int, seed: int) -> tuple[list[int], list[int]]:
    """A tree such as best-first growth gives: a node hangs from one of the few before it."""
    generator = random.Random(seed)
    parents = [-1] + [generator.randrange(max(0, i - 8), i) for i in range(1, num_nodes)]
    return [generator.randrange(vocab_size) for _ in parents], parents


def random_trees(batch: int, num_nodes: int, vocab_size: int, device: torch.device) -> DraftTree:
    trees = [random_tree(num_nodes, vocab_size, seed) for seed in range(batch)]
    return DraftTree.build(trees, device)
