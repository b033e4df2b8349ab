"""Windows, soft-caps, sinks and float8 pages against the float64 oracle."""

from typing import Any

import pytest
import torch

from tests.attention.examples import (
    assert_near,
    attention,
    example,
    launch_arguments,
    on_device,
)
from tests.attention.options import OPTIONS, SINKS, in_float8
from tests.paged_trees import Paged, to_device
from wanspec_kernels.attention import tree_attention
from wanspec_kernels.attention.arguments import Scoring
from wanspec_kernels.attention.launch import Launch, launch_tree_attention
from wanspec_kernels.tree import DraftTree

ROUNDING = 4.0  # float32: the kernel's tanh cancels near 0, and products of scales round twice


def prepare(
    name: str, paged: Paged, options: dict[str, Any] | None = None
) -> tuple[Paged, dict[str, Any]]:
    options = OPTIONS[name] if options is None else options
    if not name.startswith("float8"):
        return paged, options
    quantised, scales = in_float8(paged)
    return quantised, options | scales


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("backend", ["triton", "sdpa"])
def test_matches_the_oracle(name: str, backend: str, device: str) -> None:
    query, paged, tree = example([0, 1, 17, 100], [5, 1, 9, 33])
    paged, options = prepare(name, paged)
    expected = attention(query, paged, tree, "reference", **options)
    actual = attention(query, paged, tree, backend, device, **options)
    assert_near(actual, expected, ROUNDING)


@pytest.mark.parametrize("name", OPTIONS)
def test_matches_the_oracle_in_half_precision(name: str, device: str) -> None:
    query, paged, tree = example([70, 0], [12, 3], dim=64, dtype=torch.float16)
    paged, options = prepare(name, paged)
    expected = attention(query, paged, tree, "reference", **options)
    for backend in ("triton", "sdpa"):
        assert_near(attention(query, paged, tree, backend, device, **options), expected)


@pytest.mark.parametrize("num_splits", [2, 5])
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("window", [1, 16, 33, 50, 131])
def test_any_split_of_a_window(window: int, page_size: int, num_splits: int, device: str) -> None:
    """With rows that see nothing of a split, and splits of which no row sees anything."""
    query, paged, tree = example([130, 0, 40], [20, 2, 9], page_size=page_size)
    options = {"window": window, "sinks": SINKS}
    expected = attention(query, paged, tree, "reference", **options)
    actual = launch_tree_attention(
        *launch_arguments(query, paged, tree, device),
        Scoring(query.shape[2] ** -0.5, **on_device(options, device)),
        Launch(16, 32, num_splits, num_warps=4, num_stages=2),
    )
    assert_near(actual.cpu(), expected, ROUNDING)


@pytest.mark.parametrize("backend", ["reference", "sdpa", "triton"])
@pytest.mark.parametrize("page_size", [16, 32])  # a step of the kernel takes 64 slots
def test_pages_behind_the_window_are_not_read(backend: str, page_size: int, device: str) -> None:
    """An engine may have given them away: their entries lead nowhere, or to NaN."""
    query, paged, tree = example([100, 70], [5, 7], page_size=page_size, dtype=torch.float16)
    window = 30
    expected = attention(query, paged, tree, "reference", window=window)
    table = paged.page_table.clone()
    for b in range(2):
        behind = (int(paged.context_lens[b]) - window + 1) // page_size
        assert behind > 0
        paged.k_pages[table[b, :behind].long()] = torch.nan
        paged.v_pages[table[b, :behind].long()] = torch.nan
        table[b, :behind] = 2**30
    gone = Paged(paged.k_pages, paged.v_pages, table, paged.context_lens)
    assert_near(attention(query, gone, tree, backend, device, window=window), expected)


def test_a_windowed_chain_is_cut_anywhere(device: str) -> None:
    """A prompt longer than its window, and more rows than a program's: some see no context."""
    query, paged, _ = example([50], [70], group=1)
    tree = DraftTree.chains([range(70)])
    options = {"window": 24}
    expected = attention(query, paged, tree, "reference", **options)
    for backend in ("triton", "sdpa"):
        assert_near(attention(query, paged, tree, backend, device, **options), expected)
    tail = DraftTree.chains([range(30)])
    later = Paged(
        paged.k_pages, paged.v_pages, paged.page_table, paged.context_lens + 40
    )  # its first 40 nodes are context now
    assert_near(attention(query[40:], later, tail, "triton", device, **options), expected[40:])


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")  # to infinity, as meant
def test_large_scores_meet_the_cap(device: str) -> None:
    query, paged, tree = example([40], [9])
    options = {"softcap": 3.0}
    expected = attention(query * 50, paged, tree, "reference", **options)
    assert_near(attention(query * 50, paged, tree, "triton", device, **options), expected, ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_sinks_of_the_models_dtype(dtype: torch.dtype, device: str) -> None:
    query, paged, tree = example([40], [9], dtype=torch.float16)
    expected = attention(query, paged, tree, "reference", sinks=SINKS)
    actual = attention(query, paged, tree, "triton", device, sinks=SINKS.to(dtype))
    assert_near(actual, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, r"window: expected 1\.\.2147483647 positions, got 0"),
        ({"softcap": 0.0}, "softcap: expected a positive number, got 0.0"),
        ({"sinks": torch.zeros(3)}, r"sinks: expected contiguous \[6\] torch\.float32 on cpu, got"),
        ({"sinks": torch.zeros(6).half()}, r"sinks: expected .* got \[6\] torch\.float16 on cpu"),
        ({"k_scale": torch.ones(2)}, r"k_scale: expected None for torch\.float32 pages, got \[2\]"),
        (
            {"k_pages": torch.zeros(4, 16, 2, 16).to(torch.float8_e4m3fn)},
            r"k_scale: expected \[2\] float32 for torch\.float8_e4m3fn pages, got None",
        ),
        (
            {
                "k_pages": torch.zeros(4, 16, 2, 16).to(torch.float8_e4m3fn),
                "k_scale": torch.ones(2),
                "v_scale": torch.ones(2),
            },
            r"v_pages: expected torch\.float8_e4m3fn as k_pages, got torch\.float32",
        ),
        (
            {
                "k_pages": torch.zeros(4, 16, 2, 16).to(torch.float8_e4m3fn),
                "k_scale": torch.ones(2).double(),
                "v_scale": torch.ones(2),
            },
            r"k_scale: expected contiguous \[2\] torch\.float32 on cpu, got \[2\] torch\.float64",
        ),
    ],
)
def test_errors_say_what_was_expected(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "query": torch.zeros(3, 6, 16),
        "k_pages": torch.zeros(4, 16, 2, 16),
        "v_pages": torch.zeros(4, 16, 2, 16),
        "page_table": torch.zeros(1, 1).int(),
        "context_lens": torch.zeros(1).int(),
        "tree": DraftTree.build([([1, 2, 3], [-1, 0, 0])]),
    }
    with pytest.raises(ValueError, match=message):
        tree_attention(**(good | change))


@pytest.mark.parametrize("name", ["none", "window, softcap, sinks", "float8"])
@pytest.mark.parametrize("backend", ["triton", "sdpa"])
def test_operator_keeps_its_promises(
    backend: str, name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # a fake has no guards
    query, paged, tree = example([9, 20], [3, 4])
    paged, options = prepare(name, paged)
    options = on_device(options, device)
    tree = to_device(tree, device)
    # What checks the schema multiplies its arguments, which float8 cannot.
    schema = () if name == "float8" else ("test_schema",)
    torch.library.opcheck(
        torch.ops.wanspec.tree_attention.default,
        (
            *(query.to(device), *paged.tensors(device)),
            *(tree.indptr, tree.ancestor_bits, tree.depth, tree.max_nodes, 0.25),
            *(options.get(n) for n in ("window", "softcap", "sinks", "k_scale", "v_scale")),
            backend,
        ),
        test_utils=(*schema, "test_autograd_registration", "test_faketensor"),
    )
