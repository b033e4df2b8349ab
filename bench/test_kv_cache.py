"""Writing a tree's entries into pages, moving the accepted ones into place, sharing pages."""

import random

import pytest
import torch

from bench.conftest import backend_or_skip, random_trees, shapes
from wanspec_kernels.kv_cache import PagedKVCache, compact, write
from wanspec_kernels.kv_cache.pages import PageAllocator

GPU_SHAPES = [(1, 64, 2048), (8, 64, 8192), (64, 16, 4096)]  # trees, nodes, context
CPU_SHAPES = [(1, 64, 256), (8, 64, 256)]
KV_HEADS, HEAD_DIM, PAGE_SIZE = 8, 128, 16
LAYERS = 32  # that a compaction moves at once, on a GPU
ACCEPTED = 4


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize(("batch", "num_nodes", "context"), shapes(CPU_SHAPES, GPU_SHAPES))
def test_write(timed, device, batch, num_nodes, context, backend):
    tree = random_trees(batch, num_nodes, 4096, device)
    pages, places = random_pages(1, batch, num_nodes, context, device)
    shape = (2, batch * num_nodes, KV_HEADS, HEAD_DIM)
    keys, values = torch.randn(shape, device=device).to(pages[0].dtype)

    def run(backend, into=pages):
        write(into[0][0], into[1][0], keys, values, tree, *places, backend=backend)

    backend_or_skip(run, backend)
    same_as_the_reference(run, pages, backend)
    timed(lambda: run(backend))


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize(("batch", "num_nodes", "context"), shapes(CPU_SHAPES, GPU_SHAPES))
def test_compact(timed, device, batch, num_nodes, context, backend):
    layers = LAYERS if device.type == "cuda" and batch < 64 else 2
    pages, places = random_pages(layers, batch, num_nodes, context, device)
    host = random.Random(0)
    nodes = [sorted(host.sample(range(1, num_nodes), ACCEPTED)) for _ in range(batch)]
    accepted_nodes = torch.tensor(nodes, dtype=torch.int32).to(device)
    num_accepted = torch.full((batch,), ACCEPTED, dtype=torch.int32, device=device)

    def run(backend, into=pages):
        compact(*into, accepted_nodes, num_accepted, *places, backend=backend)

    backend_or_skip(run, backend)
    same_as_the_reference(run, pages, backend)
    timed(lambda: run(backend))


@pytest.mark.parametrize("length", [4096, 4097], ids=["whole pages", "and a copy"])
def test_fork(timed, device, length):
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    cache = PagedKVCache(LAYERS, 300, PAGE_SIZE, KV_HEADS, HEAD_DIM, dtype, device)
    cache.reserve(0, length)
    cache.k_pages.normal_()

    def fork():
        cache.fork(0, 1, length)

    fork()
    pages = cache.page_table([0, 1]).long()
    last, rows = (length - 1) // PAGE_SIZE, (length - 1) % PAGE_SIZE + 1
    ours, theirs = (cache.k_pages[:, page, :rows] for page in pages[:, last])
    assert torch.equal(ours, theirs)
    cache.free(1)

    def fork_and_free():
        fork()
        cache.free(1)

    timed(fork_and_free)


def test_bookkeeping(timed):
    """Of 64 requests that share 2,048 slots, grow by 20 slots at a time to 4,096, and end."""
    pages = PageAllocator(64 * 256, PAGE_SIZE)
    pages.reserve(-1, 2048)

    def serve():
        for request in range(64):
            pages.fork(-1, request, 2048)
        for length in range(2048, 4097, 20):
            for request in range(64):
                pages.reserve(request, length)
        for request in range(64):
            pages.free(request)

    serve()
    assert pages.num_free == 64 * 256 - 2048 // PAGE_SIZE
    timed(serve)


def random_pages(layers, batch, num_nodes, context, device):
    """Key and value pages of random numbers, and context lengths with a shuffled page table."""
    pages_each = -(-(context + num_nodes) // PAGE_SIZE)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    shape = (layers, batch * pages_each, PAGE_SIZE, KV_HEADS, HEAD_DIM)
    torch.manual_seed(0)
    pages = tuple(torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    context_lens = torch.full((batch,), context - 1, dtype=torch.int32, device=device)
    page_table = torch.randperm(batch * pages_each, device=device).int().view(batch, pages_each)
    return pages, (context_lens, page_table)


def same_as_the_reference(run, pages, backend):
    ours, oracle = ([page.clone() for page in pages] for _ in range(2))
    run(backend, ours)
    run("reference", oracle)
    assert all(torch.equal(a, b) for a, b in zip(ours, oracle, strict=True))
