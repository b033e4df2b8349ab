"""Passes captured in CUDA graphs, one a capacity: replaying one costs the host a launch."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from wanspec_kernels.engine.model.capacity import Capacity, PassBuffers, smallest_that_holds
from wanspec_kernels.tree import DraftTree

logger = logging.getLogger(__name__)

MAX_GRAPHS = 32  # each holds its logits and its launches
Forward = Callable[[DraftTree, Tensor, Tensor], Tensor]  # as Target.logits takes and returns them


class CaptureError(RuntimeError):
    """The model's forward cannot be captured; its passes have to be launched one kernel a time."""


class PassGraph:
    """One pass, captured over buffers of one capacity."""

    def __init__(self, forward: Forward, buffers: PassBuffers, pool: Any) -> None:
        """`pool` is what ``torch.cuda.graph_pool_handle`` gives."""
        self._buffers = buffers
        self._graph = torch.cuda.CUDAGraph()

        def run() -> Tensor:
            # A tree of its own each time: a captured one must not find what another has derived.
            return forward(buffers.tree(), buffers.context_lens, buffers.page_table)

        run()  # compiles, and sets up what libraries set up at first use
        try:
            with torch.cuda.graph(self._graph, pool=pool):
                self._logits = run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = next(iter(str(error.__context__ or error).splitlines()), "")
            raise CaptureError(f"{buffers.capacity}: {reason}") from error

    def replay(self, tree: DraftTree, context_lens: Tensor, page_table: Tensor) -> Tensor:
        """[tree.num_nodes, vocab_size], valid until the next replay of any graph of the pool."""
        self._buffers.load(tree, context_lens, page_table)
        self._graph.replay()
        return self._logits[: tree.num_nodes]


class PassGraphs:
    """Graphs of several capacities, which share the memory of what lies between their layers."""

    def __init__(
        self,
        forward: Forward,
        capacities: Iterable[Capacity],
        max_pages: int,
        device: torch.device,
    ) -> None:
        """Capture all of them. `max_pages` is the widest page table.

        Raises:
            ValueError: there are more than MAX_GRAPHS capacities.
            CaptureError: the forward waits for the device, or a kernel cannot be captured.
        """
        ordered = sorted(set(capacities), key=lambda c: c.num_nodes, reverse=True)
        if len(ordered) > MAX_GRAPHS:
            raise ValueError(f"capacities: expected at most {MAX_GRAPHS}, got {len(ordered)}")
        self._max_pages = max_pages
        self._graphs: dict[Capacity, PassGraph] = {}
        with torch.cuda.device(device):
            pool = torch.cuda.graph_pool_handle()
            for capacity in ordered:  # the largest first: the others fit into what it has left
                buffers = PassBuffers(capacity, max_pages, device)
                self._graphs[capacity] = PassGraph(forward, buffers, pool)
                logger.info("captured a pass of %s", capacity)

    def fitting(self, tree: DraftTree, page_table: Tensor) -> PassGraph | None:
        """The cheapest graph that has room; None if none has."""
        if page_table.shape[1] > self._max_pages:
            return None
        capacity = smallest_that_holds(self._graphs, tree)
        return None if capacity is None else self._graphs[capacity]
