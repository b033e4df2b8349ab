"""Pages and who holds them: growth, sharing, errors, and that none is ever lost."""

import random

import pytest
import torch

from wanspec_kernels.kv_cache import CacheFullError, PagedKVCache
from wanspec_kernels.kv_cache.pages import PageAllocator


def test_pages_change_hands() -> None:
    cache = PagedKVCache(1, 6, 16, 1, 4)
    cache.reserve(1, 17)
    cache.reserve(2, 1)
    cache.reserve(1, 33)  # grows, and keeps what it has
    assert cache.page_table([2, 1]).tolist() == [[2, -1, -1], [0, 1, 3]]
    cache.reserve(1, 5)
    assert cache.capacity(1) == 48
    with pytest.raises(CacheFullError, match="64 slots need 3 more pages of 16 slots, 2 of 6 are"):
        cache.reserve(2, 64)
    assert cache.num_free_pages == 2
    with pytest.raises(CacheFullError, match="request 3: 49 slots need 4 more"):
        cache.reserve(3, 49)
    with pytest.raises(KeyError, match="request 3: owns no pages"):
        cache.page_table([3])
    cache.free(1)
    assert cache.num_free_pages == 5
    with pytest.raises(KeyError, match="request 1: owns no pages"):
        cache.free(1)
    cache.reserve(4, 80)
    owned = cache.page_table([4, 2])
    assert sorted(owned[owned >= 0].tolist()) == list(range(6))
    with pytest.raises(ValueError, match="max_pages: expected at least 5, got 4"):
        cache.page_table([4], max_pages=4)


def test_a_fork_shares_whole_pages_and_copies_the_last() -> None:
    cache = PagedKVCache(2, 8, 16, 1, 4)
    cache.reserve(1, 50)
    cache.k_pages.copy_(torch.arange(8.0).view(1, 8, 1, 1, 1))
    cache.v_pages.copy_(-cache.k_pages)
    cache.fork(1, 2, 40)
    cache.fork(2, 3, 16)  # of a fork; ends with a page
    cache.fork(3, 4, 0)
    table = cache.page_table([1, 2, 3, 4])
    assert table.tolist() == [
        [0, 1, 2, 3],
        [0, 1, 4, -1],
        [0, -1, -1, -1],
        [-1, -1, -1, -1],
    ]
    assert (cache.k_pages[:, 4] == 2).all()
    assert (cache.v_pages[:, 4] == -2).all()
    assert cache.num_free_pages == 3
    cache.reserve(3, 17)
    assert cache.page_table([3]).tolist() == [[0, 5]]
    cache.free(1)
    assert cache.num_free_pages == 4  # 0 and 1 are held by others
    cache.reserve(4, 16 * 4)
    assert sorted(cache.page_table([4])[0].tolist()) == [2, 3, 6, 7]
    for request in (2, 3, 4):
        cache.free(request)
    assert cache.num_free_pages == 8


def test_fork_says_what_was_expected() -> None:
    cache = PagedKVCache(1, 3, 16, 1, 4)
    cache.reserve(1, 40)
    with pytest.raises(KeyError, match="request 5: owns no pages"):
        cache.fork(5, 6, 1)
    with pytest.raises(ValueError, match="request 1: expected a new one, it owns pages already"):
        cache.fork(1, 1, 16)
    for num_slots in (-1, 49):
        with pytest.raises(
            ValueError, match=rf"expected 0\.\.48, as request 1 owns, got {num_slots}"
        ):
            cache.fork(1, 2, num_slots)
    with pytest.raises(
        CacheFullError, match="request 2: 33 slots need 1 more pages of 16 slots, 0 of 3 are free"
    ):
        cache.fork(1, 2, 33)
    with pytest.raises(KeyError, match="request 2: owns no pages"):
        cache.free(2)
    cache.fork(1, 2, 32)
    cache.free(1)
    assert cache.num_free_pages == 1


def test_a_million_operations_lose_no_page() -> None:
    num_pages, page_size = 256, 16
    pages = PageAllocator(num_pages, page_size)
    rng, lengths, full = random.Random(0), {}, 0
    alive: list[int] = []
    for step in range(1_000_000):
        kind = rng.random()
        if alive and kind < 0.4:
            request = alive[int(rng.random() * len(alive))]
            lengths[request] += int(rng.random() * 40)
            try:
                pages.reserve(request, lengths[request])
            except CacheFullError:
                full += 1
                lengths[request] = len(pages.pages_of(request)) * page_size
        elif alive and kind < 0.6:
            request = alive[int(rng.random() * len(alive))]
            length = int(rng.random() * (lengths[request] + 1))
            try:
                pages.fork(request, step, length)
            except CacheFullError:
                full += 1
                continue
            lengths[step] = length
            alive.append(step)
        elif alive and (kind < 0.8 or len(alive) == 80):
            i = int(rng.random() * len(alive))
            alive[i], request = alive[-1], alive[i]
            alive.pop()
            pages.free(request)
            del lengths[request]
        else:
            pages.reserve(step, 0)
            lengths[step] = 0
            alive.append(step)
        if step % 20_000 == 0:
            held = {page for request in alive for page in pages.pages_of(request)}
            assert pages.num_free == num_pages - len(held)
    assert full > 1000
    for request in alive:
        pages.free(request)
    assert pages.num_free == num_pages
    pages.reserve(-1, num_pages * page_size)
    assert sorted(pages.pages_of(-1)) == list(range(num_pages))
