"""Writes and moves touch the slots they name and nothing else."""

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.compile_kernels import run_compiled
from tests.paged_trees import random_trees, to_device
from wanspec_kernels.kv_cache import PagedKVCache, compact, write
from wanspec_kernels.tree import DraftTree

BACKENDS = ("reference", "triton")
SENTINEL = -77.0
FLOAT8 = {
    name: torch.zeros(2, 16, 1, 4, dtype=torch.float8_e4m3fn) for name in ("k_pages", "v_pages")
}


def head_major(pages: Tensor) -> Tensor:
    """The same numbers, pages innermost but for an entry's: no stride but the last is as before."""
    return pages.permute(3, 0, 2, 1, 4).contiguous().permute(1, 3, 2, 0, 4)


def filled_cache(
    slots: Sequence[int], device: str, *, layers: int = 2, page_size: int = 16, dim: int = 5
) -> tuple[PagedKVCache, Tensor]:
    """Request b owns slots[b] slots, in pages out of order; all memory is the sentinel."""
    pages = [-(-n // page_size) for n in slots]
    cache = PagedKVCache(layers, sum(pages) + 3, page_size, 3, dim, device=device)
    cache.v_pages = head_major(cache.v_pages)
    cache.k_pages.fill_(SENTINEL)
    cache.v_pages.fill_(SENTINEL)
    for step in range(max(pages)):  # interleaved
        for b, count in enumerate(pages):
            if step < count:
                cache.reserve(b, (step + 1) * page_size)
    return cache, cache.page_table(range(len(slots)), max_pages=max(pages) + 1)


def places(page_table: Tensor, b: int, slot: int, page_size: int) -> tuple[int, int]:
    return int(page_table[b, slot // page_size]), slot % page_size


@pytest.mark.parametrize("backend", BACKENDS)
def test_write_touches_only_its_slots(backend: str, device: str) -> None:
    context_lens, sizes = [0, 13, 16, 40], [3, 7, 1, 33]
    tree = to_device(random_trees(sizes, random.Random(0)), device)
    cache, table = filled_cache([c + n for c, n in zip(context_lens, sizes, strict=True)], device)
    # As a model gives them: [heads, nodes, dim] transposed, with two rows of padding.
    keys = torch.randn(3, sum(sizes) + 2, 5, device=device).transpose(0, 1)
    values = torch.randn(3, sum(sizes) + 2, 5, device=device).transpose(0, 1)
    filler = torch.full((2,), -1, dtype=torch.int32, device=device)
    padded = DraftTree(
        torch.cat([tree.token_ids, filler]),
        torch.cat([tree.parents, filler]),
        tree.indptr,
        tree.max_nodes,
        tree.max_depth,
    )
    lens = torch.tensor(context_lens, dtype=torch.int32, device=device)
    expected_k, expected_v = cache.k_pages.clone(), cache.v_pages.clone()
    row = 0
    for b, (context_len, size) in enumerate(zip(context_lens, sizes, strict=True)):
        for node in range(size):
            page, offset = places(table, b, context_len + node, cache.page_size)
            expected_k[1, page, offset] = keys[row]
            expected_v[1, page, offset] = values[row]
            row += 1
    cache.write(1, keys, values, padded, lens, table, backend=backend)
    torch.testing.assert_close(cache.k_pages, expected_k, rtol=0, atol=0)
    torch.testing.assert_close(cache.v_pages, expected_v, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_write_leaves_out_slots_without_a_page(backend: str, device: str) -> None:
    cache, table = filled_cache([20], device)
    tree = DraftTree.chains([range(30)], device)  # slots 10..39; pages end at 31
    entries = torch.randn(30, 3, 5, device=device)
    lens = torch.tensor([10], dtype=torch.int32, device=device)
    cache.write(0, entries, entries, tree, lens, table, backend=backend)
    cache.write(0, entries, entries, tree, lens, table[:, :2], backend=backend)
    slots = cache.k_pages[0, table[0, :2].long()].flatten(0, 1)
    torch.testing.assert_close(slots[10:], entries[:22], rtol=0, atol=0)
    assert (slots[:10] == SENTINEL).all()
    assert (cache.k_pages == SENTINEL).sum() == cache.k_pages.numel() - 22 * 15


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_write_quantises_by_heads(backend: str, dtype: torch.dtype, device: str) -> None:
    """To the nearest that float8 has; what is too large to the largest; NaN stays NaN."""
    if (backend, device) == ("triton", "cpu"):
        pytest.skip("Triton's interpreter rounds to float8 wrongly")
    pages = torch.full((2, 3, 16, 3, 5), SENTINEL, device=device).to(torch.float8_e4m3fn)
    scales = torch.tensor([[0.1, 2.0, 0.003], [7.0, 0.5, 1.0]], device=device)
    entries = torch.randn(2, 20, 3, 5, device=device).to(dtype)
    entries[0, 0, 0] = torch.tensor([-300.0, 44.8, 300.0, torch.inf, torch.nan])
    tree = DraftTree.chains([range(20)], device)
    lens = torch.tensor([14], dtype=torch.int32, device=device)
    table = torch.tensor([[2, 0, 1]], dtype=torch.int32, device=device)
    options = {"k_scale": scales[0], "v_scale": scales[1], "backend": backend}
    write(pages[0], pages[1], entries[0], entries[1], tree, lens, table, **options)
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    values = values[values.isfinite()]
    for kind in range(2):
        for node in range(20):
            slot = 14 + node
            stored = pages[kind, int(table[0, slot // 16]), slot % 16].cpu().double()
            meant = entries[kind, node].cpu().double() / scales[kind].cpu().double()[:, None]
            best = (meant[..., None] - values).abs().min(-1).values
            if kind == node == 0:
                assert stored[0, :4].tolist() == [-448, 448, 448, 448]
                assert stored[0, 4].isnan()
                meant[0], best[0], stored[0] = 0, 0, 0
            assert ((stored - meant).abs() <= best * (1 + 1e-6) + 1e-6).all()
    assert (pages[0, 2, :14].float() == torch.tensor(SENTINEL).to(pages.dtype).float()).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_compact_moves_accepted_entries(backend: str, dtype: torch.dtype, device: str) -> None:
    """Against one move after another, on random paths; all else keeps its bits."""
    rng = random.Random(3)
    batch, nodes, max_depth = 12, 70, 9
    context_lens = [rng.choice((0, 1, 15, 16, 17, 47)) for _ in range(batch)]
    counts = [0, max_depth] + [rng.randrange(max_depth + 1) for _ in range(batch - 2)]
    accepted = torch.full((batch, max_depth), -1, dtype=torch.int32)
    for b, count in enumerate(counts):
        accepted[b, :count] = torch.tensor(sorted(rng.sample(range(1, nodes), count)))
    accepted[2, : counts[2]] = torch.arange(1, counts[2] + 1)  # a chain: nothing moves
    for layers, page_size, dim in ((3, 16, 5), (1, 64, 700)):
        cache, table = filled_cache(
            [c + nodes for c in context_lens], device, layers=layers, page_size=page_size, dim=dim
        )
        k_pages = torch.randn(cache.k_pages.shape, device=device).to(dtype)
        v_pages = head_major(torch.randn(cache.v_pages.shape, device=device).to(dtype))
        expected = (k_pages.clone(), v_pages.clone())
        for b, count in enumerate(counts):
            for d in range(1, count + 1):
                source = places(table, b, context_lens[b] + int(accepted[b, d - 1]), page_size)
                target = places(table, b, context_lens[b] + d, page_size)
                for pages in expected:
                    pages[:, target[0], target[1]] = pages[:, source[0], source[1]].clone()
        host = (accepted, torch.tensor(counts).int(), torch.tensor(context_lens).int())
        arguments = (t.to(device) for t in host)
        compact(k_pages, v_pages, *arguments, table, backend=backend)
        for pages, wanted in zip((k_pages, v_pages), expected, strict=True):
            assert torch.equal(pages.view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn], ids=str)
def test_gaps_between_entries_are_not_touched(
    backend: str, dtype: torch.dtype, device: str
) -> None:
    """Pages that are a part of what an engine keeps for each slot."""
    memory = torch.full((2, 2, 4, 16, 3, 9), SENTINEL, device=device).to(dtype)
    before = memory.clone()
    k_pages, v_pages = memory[0, ..., 2:7], memory[1, ..., 2:7]
    tree = DraftTree.chains([range(20)], device)
    lens = torch.tensor([14], dtype=torch.int32, device=device)
    table = torch.tensor([[2, 0, 3]], dtype=torch.int32, device=device)
    entries = torch.randn(20, 3, 5, device=device).to(dtype)
    for layer in range(2):
        places = (tree, lens, table)
        write(k_pages[layer], v_pages[layer], entries, entries, *places, backend=backend)
    nodes = torch.tensor([[2, 18]], dtype=torch.int32, device=device)
    counts = torch.tensor([2], dtype=torch.int32, device=device)
    compact(k_pages, v_pages, nodes, counts, lens, table, backend=backend)
    moved = list(range(20))
    moved[1:3] = [2, 18]
    for kind in range(2):
        for layer in range(2):
            for slot, node in enumerate(moved, start=14):
                place = before[kind, layer, table[0, slot // 16], slot % 16]
                place[:, 2:7] = entries[node]
    assert torch.equal(memory.view(torch.uint8), before.view(torch.uint8))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("nodes", "count"),
    [
        ([3, -1], 2),  # padding that the count does not cover
        ([-1, -1], 2),
        ([0, 1], 2),  # below their depth
        ([4000, 2**31 - 1], 2),
        ([1, 2], 50),  # more than there are columns
        ([5, 6], 0),
        ([5, 6], -3),
    ],
)
def test_compact_ignores_what_cannot_be(
    nodes: list[int], count: int, backend: str, device: str
) -> None:
    cache, table = filled_cache([24], device)
    entries = torch.randn(cache.k_pages.shape, device=device)
    cache.k_pages.copy_(entries)
    accepted = torch.tensor([nodes], dtype=torch.int32, device=device)
    counts = torch.tensor([count], dtype=torch.int32, device=device)
    lens = torch.tensor([16], dtype=torch.int32, device=device)
    cache.compact(accepted, counts, lens, table, backend)
    expected = entries.clone()
    if nodes[0] == 3 and count > 0:
        page = int(table[0, 1])
        expected[:, page, 1] = entries[:, page, 3]
    torch.testing.assert_close(cache.k_pages, expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_write_of_padding_alone(backend: str, device: str) -> None:
    cache, _ = filled_cache([1], device)
    pad = torch.full((2,), -1, dtype=torch.int32, device=device)
    nothing = torch.zeros(1, dtype=torch.int32, device=device)
    tree = DraftTree(pad, pad, nothing, max_nodes=1, max_depth=0)
    entries = torch.randn(2, 3, 5, device=device)
    cache.write(0, entries, entries, tree, nothing[:0], nothing[:0, None], backend=backend)
    assert (cache.k_pages == SENTINEL).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_heads_more_than_2_to_31_numbers_apart(backend: str, device: str) -> None:
    """Over memory of which next to nothing is touched."""
    far = (1 << 30) + 64

    def pages() -> Tensor:
        memory = torch.empty(2 * far + 64, dtype=torch.int8, device=device)
        return memory.as_strided((1, 1, 16, 3, 4), (64, 64, 4, far, 1))

    k_pages, v_pages = pages(), pages()
    entries = torch.arange(36, dtype=torch.int8, device=device).view(3, 3, 4)
    tree = DraftTree.build([([1, 2, 3], [-1, 0, 0])], device)
    zero, one = torch.tensor([0, 1], dtype=torch.int32, device=device).split(1)
    slots = (zero, zero[None])
    write(k_pages[0], v_pages[0], entries, entries, tree, *slots, backend=backend)
    compact(k_pages, v_pages, 2 * one[None], one, *slots, backend=backend)
    for cached in (k_pages, v_pages):
        assert torch.equal(cached[0, 0, :3], entries[[0, 2, 2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(2, 1, 4)}, r"keys: expected \[3, 1, 4\] torch.float32, got \[2, 1"),
        ({"values": torch.zeros(3, 1, 4).half()}, r"values: expected .* got .* torch\.float16"),
        ({"page_table": torch.zeros(1, 1)}, r"page_table: expected \[1, max_pages\] int32"),
        ({"context_lens": torch.zeros(2).int()}, r"context_lens: expected \[1\] int32"),
        ({"v_pages": torch.zeros(2, 16, 1, 8)}, r"v_pages: expected \[2, 16, 1, 4\]"),
        ({"backend": "sdpa"}, "expected a backend of auto, triton, reference, got sdpa"),
        ({"k_scale": torch.ones(1)}, r"k_scale: expected None for torch\.float32 pages"),
        (FLOAT8 | {"k_scale": torch.ones(1)}, r"v_scale: expected \[1\] torch\.float32, got None"),
        (
            FLOAT8 | {"k_scale": torch.ones(2), "v_scale": torch.ones(2)},
            r"k_scale: expected \[1\] torch\.float32, got \[2\] torch\.float32",
        ),
        (
            FLOAT8,
            r"keys: expected \[3, 1, 4\] torch\.float8_e4m3fn, got \[3, 1, 4\] torch\.float32",
        ),
    ],
)
def test_write_says_what_was_expected(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "k_pages": torch.zeros(2, 16, 1, 4),
        "v_pages": torch.zeros(2, 16, 1, 4),
        "keys": torch.zeros(3, 1, 4),
        "values": torch.zeros(3, 1, 4),
        "tree": DraftTree.chains([[1, 2, 3]]),
        "context_lens": torch.zeros(1).int(),
        "page_table": torch.zeros(1, 1).int(),
    }
    with pytest.raises(ValueError, match=message):
        write(**(good | change))


def test_compact_says_what_was_expected() -> None:
    pages, table = torch.zeros(1, 2, 16, 1, 4), torch.zeros(1, 1).int()
    nodes, counts, lens = torch.zeros(1, 2).int(), torch.zeros(1).int(), torch.zeros(1).int()
    with pytest.raises(ValueError, match=r"accepted_nodes: expected \[1, max_depth\]"):
        compact(pages, pages.clone(), nodes[0], counts, lens, table)
    with pytest.raises(ValueError, match=r"num_accepted: expected int32 on cpu, got torch\.int64"):
        compact(pages, pages.clone(), nodes, counts.long(), lens, table)
    with pytest.raises(ValueError, match="k_pages: expected 5 dimensions"):
        compact(pages[0], pages[0].clone(), nodes, counts, lens, table)


@pytest.mark.parametrize("backend", BACKENDS)
def test_operators_keep_their_promises(backend: str, device: str) -> None:
    cache, table = filled_cache([20, 40], device)
    tree = DraftTree.chains([range(3), range(4)], device)
    entries = torch.randn(7, 3, 5, device=device)
    lens = torch.tensor([5, 30], dtype=torch.int32, device=device)
    pages = (cache.k_pages, cache.v_pages)
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        torch.ops.wanspec.kv_cache_write.default,
        (
            pages[0][0],
            pages[1][0],
            entries,
            entries,
            tree.indptr,
            lens,
            table,
            None,
            None,
            4,
            backend,
        ),
        test_utils=utils,
    )
    nodes = torch.tensor([[2, -1], [2, 3]], dtype=torch.int32, device=device)
    counts = torch.tensor([1, 2], dtype=torch.int32, device=device)
    torch.library.opcheck(
        torch.ops.wanspec.kv_cache_compact.default,
        (*pages, nodes, counts, lens, table, backend),
        test_utils=utils,
    )


COMPILE = """
from tests.compile_kernels import compile_for_gpus
from wanspec_kernels.kv_cache.kv_cache_kernels import compact_kernel, write_kernel

def types(kernel):
    elements = ("k_ptr", "v_ptr", "keys_ptr", "values_ptr")
    return {
        name: "*bf16" if name in elements else "*fp32" if name.endswith("scale_ptr")
        else "*i32" if name.endswith("_ptr") else "i32"
        for name in kernel.arg_names if not name.isupper()
    }

sizes = dict(PAGE_SIZE=16, DIM=128, BLOCK=1024)
writing = types(write_kernel)
for quantise in (False, True):
    compile_for_gpus(write_kernel, writing, sizes | dict(BLOCK_NODES=4, QUANTISE=quantise))
compile_for_gpus(compact_kernel, types(compact_kernel), sizes | dict(MOVES=8))
"""


def test_compiles() -> None:
    run_compiled(COMPILE)
