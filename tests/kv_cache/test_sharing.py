"""Requests that share pages, against a model in which each has a list of its own."""

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from tests.paged_trees import random_parents, to_device
from wanspec_kernels.kv_cache import CacheFullError, PagedKVCache
from wanspec_kernels.tree import DraftTree

NUM_PAGES, PAGE_SIZE = 12, 4
SENTINEL = -77.0


class SharingMachine(RuleBasedStateMachine):
    """Entries are numbers, each written once: an entry says which write it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PagedKVCache(2, NUM_PAGES, PAGE_SIZE, 1, 1)
        self.committed: dict[int, list[float]] = {}
        self.page_ids: dict[int, list[int]] = {}  # pages by names of the model's own
        self.written = 0
        self.named = 0

    @property
    def free(self) -> int:
        return NUM_PAGES - len({page for pages in self.page_ids.values() for page in pages})

    def names(self, count: int) -> list[int]:
        self.named += count
        return list(range(self.named - count, self.named))

    def full(self, needed: int, call: Callable[[], None]) -> bool:
        """Make the call; it must fail just when the model lacks pages."""
        if needed <= self.free:
            call()
            return False
        with pytest.raises(CacheFullError):
            call()
        return True

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.committed)))

    @rule(request=st.integers(0, 5))
    def start(self, request: int) -> None:
        if request not in self.committed:
            self.cache.reserve(request, 0)
            self.committed[request], self.page_ids[request] = [], []

    @precondition(lambda self: self.committed)
    @rule(data=st.data(), size=st.integers(1, 9), seed=st.integers(0, 99))
    def step(self, data: st.DataObject, size: int, seed: int) -> None:
        """A tree is written, a path of it accepted and moved into place."""
        request, rng = self.pick(data), random.Random(seed)
        text, held = self.committed[request], self.page_ids[request]
        slots = len(text) + size
        needed = max(0, -(-slots // PAGE_SIZE) - len(held))
        if self.full(needed, lambda: self.cache.reserve(request, slots)):
            return
        held += self.names(needed)
        parents = random_parents(size, rng)
        tree = DraftTree.build([([0] * size, parents)])
        entries = torch.arange(self.written, self.written + size).float().view(size, 1, 1)
        self.written += size
        lens = torch.tensor([len(text)], dtype=torch.int32)
        table = self.cache.page_table([request])
        for layer in range(2):
            keys = entries + 1e6 * layer
            self.cache.write(layer, keys, -keys, tree, lens, table, backend="reference")
        path, node = [], rng.randrange(size)
        while node > 0:
            path.append(node)
            node = parents[node]
        accepted = torch.tensor([path[::-1] or [-1]], dtype=torch.int32)
        count = torch.tensor([len(path)], dtype=torch.int32)
        self.cache.compact(accepted, count, lens, table, backend="reference")
        text += [entries[node].item() for node in (0, *path[::-1])]

    @precondition(lambda self: self.committed)
    @rule(data=st.data(), new=st.integers(0, 5))
    def fork(self, data: st.DataObject, new: int) -> None:
        request = self.pick(data)
        if new in self.committed:
            with pytest.raises(ValueError, match="expected a new one"):
                self.cache.fork(request, new, 0)
            return
        text = self.committed[request]
        length = data.draw(st.integers(0, len(text)))
        whole, rest = divmod(length, PAGE_SIZE)
        needed = 1 if rest else 0
        if self.full(needed, lambda: self.cache.fork(request, new, length)):
            return
        self.committed[new] = text[:length]
        self.page_ids[new] = self.page_ids[request][:whole] + self.names(needed)

    @precondition(lambda self: self.committed)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        request = self.pick(data)
        self.cache.free(request)
        del self.committed[request], self.page_ids[request]

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.cache.num_free_pages == self.free
        for request, text in self.committed.items():
            pages = self.cache.page_table([request])[0].long()
            assert self.cache.capacity(request) == PAGE_SIZE * len(self.page_ids[request])
            for layer in range(2):
                expected = torch.tensor(text) + 1e6 * layer
                keys = self.cache.k_pages[layer, pages].flatten()[: len(text)]
                values = self.cache.v_pages[layer, pages].flatten()[: len(text)]
                assert torch.equal(keys, expected)
                assert torch.equal(values, -expected)


SharingMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestSharing = SharingMachine.TestCase


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_shared_page_is_written_through_nobody(backend: str, device: str) -> None:
    """Each fork writes trees and moves entries right behind what it shares."""
    cache = PagedKVCache(2, 30, 16, 2, 5, device=device)
    cache.reserve(0, 60)
    original = torch.randn(cache.k_pages.shape, device=device)
    cache.k_pages.copy_(original)
    cache.v_pages.copy_(-original)
    lengths = {1: 32, 2: 33, 3: 47, 4: 48, 5: 0}
    for request, length in lengths.items():
        cache.fork(0, request, length)
        cache.reserve(request, length + 20)
    requests = list(lengths)
    table = cache.page_table(requests)
    shared = cache.page_table([0])[0, : 48 // 16].long()

    tree = to_device(DraftTree.chains([range(20)] * 5), device)
    lens = torch.tensor(list(lengths.values()), dtype=torch.int32, device=device)
    junk = torch.full((100, 2, 5), SENTINEL, device=device)
    for layer in range(2):
        cache.write(layer, junk, junk, tree, lens, table, backend=backend)
    accepted = torch.tensor([[3, 9, 19]] * 5, dtype=torch.int32, device=device)
    counts = torch.full((5,), 3, dtype=torch.int32, device=device)
    cache.compact(accepted, counts, lens, table, backend=backend)

    assert torch.equal(cache.k_pages[:, shared], original[:, shared])
    assert torch.equal(cache.v_pages[:, shared], -original[:, shared])
    for b, length in enumerate(lengths.values()):
        begins = slots_of(cache, table[b])[:, : length + 20]
        assert torch.equal(
            begins[:, :length], slots_of(cache, cache.page_table([0])[0], original)[:, :length]
        )
        assert (begins[:, length:] == SENTINEL).all()


def slots_of(cache: PagedKVCache, page_row: Tensor, pages: Tensor | None = None) -> Tensor:
    """[layers, slots, heads, dim] of the keys."""
    return (cache.k_pages if pages is None else pages)[:, page_row.long()].flatten(1, 2)
