"""The derive_tree kernel against loops and sets.

Its device code runs on the host first (any C++20 compiler will do), then as built, on a GPU.
"""

import ctypes
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wanspec_kernels.tree import derive_reference

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"

Derived = tuple[Tensor, Tensor, Tensor, Tensor]
Derive = Callable[[Tensor, Tensor, int], Derived]


def random_tree(size: int, rng: random.Random) -> list[int]:
    reach = rng.choice((1, 3, 40, size))  # how far back a parent may lie: 1 is a chain
    return [-1] + [rng.randrange(max(0, i - reach), i) for i in range(1, size)]


def star(size: int) -> list[int]:
    return [-1] + [0] * (size - 1)


def chain(size: int) -> list[int]:
    return list(range(-1, size - 1))


RNG = random.Random(7)
CASES = {
    "roots alone": ([[-1], [-1], [-1]], 0),
    "empty batch": ([], 5),
    "nothing at all": ([], 0),
    "chains": ([chain(n) for n in (1, 2, 31, 32, 33, 63, 64, 65, 1024)], 0),
    "stars": ([star(n) for n in (2, 32, 33, 64, 65, 200, 1024)], 3),
    "random small": ([random_tree(RNG.randint(1, 40), RNG) for _ in range(40)], 64),
    "random large": ([random_tree(n, RNG) for n in (63, 127, 128, 129, 777, 1000, 1024)], 1),
    "larger than a block and 1024": ([random_tree(1500, RNG), star(1300)], 0),
    "interleaved siblings": ([[-1, 0, 0] + [1 + i % 2 for i in range(70)]], 0),
}


def pack(trees: list[list[int]], padding: int) -> tuple[Tensor, Tensor, int]:
    """parents, indptr and words; what lies in padding is garbage, which no one may read."""
    parents = [parent for tree in trees for parent in tree] + [987654] * padding
    indptr = [0]
    for tree in trees:
        indptr.append(indptr[-1] + len(tree))
    words = (max(map(len, trees), default=1) + 63) // 64
    return (
        torch.tensor(parents, dtype=torch.int32),
        torch.tensor(indptr, dtype=torch.int32),
        words,
    )


def derive_by_loops(trees: list[list[int]], padding: int, words: int) -> Derived:
    depth, first_child, next_sibling, ancestor_bits = [], [], [], []
    for parents in trees:
        paths: list[set[int]] = []
        for node, parent in enumerate(parents):
            paths.append({node} | (paths[parent] if parent >= 0 else set()))
            children = [i for i, p in enumerate(parents) if p == node]
            later = [i for i, p in enumerate(parents) if p == parent and i > node]
            depth.append(len(paths[node]) - 1)
            first_child.append(children[0] if children else -1)
            next_sibling.append(later[0] if later and parent >= 0 else -1)
            ancestor_bits.append(pack_bits(paths[node], words))
    outside = [-1] * padding
    return (
        torch.tensor(depth + outside, dtype=torch.int32),
        torch.tensor(first_child + outside, dtype=torch.int32),
        torch.tensor(next_sibling + outside, dtype=torch.int32),
        torch.tensor(ancestor_bits + [[0] * words] * padding).long().reshape(-1, words),
    )


def pack_bits(nodes: set[int], words: int) -> list[int]:
    packed = sum(1 << node for node in nodes).to_bytes(8 * words, "little")
    return [int.from_bytes(packed[8 * w : 8 * w + 8], "little", signed=True) for w in range(words)]


def assert_derives(derive: Derive, name: str, device: str = "cpu") -> None:
    trees, padding = CASES[name]
    parents, indptr, words = pack(trees, padding)
    actual = derive(parents.to(device), indptr.to(device), words)
    expected = derive_by_loops(trees, padding, words)
    fields = ("depth", "first_child", "next_sibling", "ancestor_bits")
    for field, got, want in zip(fields, actual, expected, strict=True):
        assert got.dtype == want.dtype, field
        torch.testing.assert_close(
            got.cpu(), want, rtol=0, atol=0, msg=lambda m, f=field: f"{f}: {m}"
        )


@pytest.fixture(scope="module")
def derive_on_host(tmp_path_factory: pytest.TempPathFactory) -> Derive:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++, c++) to build the host twin with")
    library = tmp_path_factory.mktemp("derive_tree") / "derive_tree_host.so"
    subprocess.run(
        [compiler, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
        + ["-pthread", f"-I{CSRC}", str(HERE / "derive_tree_host.cpp"), "-o", str(library)],
        check=True,
    )
    function = ctypes.CDLL(str(library)).derive_tree_host
    function.restype = None

    def derive(parents: Tensor, indptr: Tensor, words: int) -> Derived:
        num_nodes = parents.shape[0]
        outputs = (
            *(torch.full((num_nodes,), -77, dtype=torch.int32) for _ in range(3)),
            torch.full((num_nodes, words), -77, dtype=torch.int64),
        )
        function(
            ctypes.c_void_p(parents.data_ptr()),
            ctypes.c_void_p(indptr.data_ptr()),
            indptr.shape[0] - 1,
            num_nodes,
            words,
            *(ctypes.c_void_p(output.data_ptr()) for output in outputs),
        )
        return outputs

    return derive


@pytest.mark.parametrize("name", CASES)
def test_device_code_on_the_host(name: str, derive_on_host: Derive) -> None:
    assert_derives(derive_on_host, name)


@pytest.mark.parametrize("name", CASES)
def test_torch_reference(name: str) -> None:
    assert_derives(derive_reference, name)


def test_words_too_few_leave_nodes_out(derive_on_host: Derive) -> None:
    """The kernel cannot see the largest tree; it must not write past a row for it."""
    parents, indptr, _ = pack([chain(130)], 0)
    one_word = derive_on_host(parents, indptr, 1)[3]
    three_words = derive_on_host(parents, indptr, 3)[3]
    torch.testing.assert_close(one_word, three_words[:, :1], rtol=0, atol=0)


@pytest.fixture(scope="module")
def derive_on_gpu() -> Derive:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("wanspec_kernels._C", reason="the CUDA extension is not built: make cuda")
    operator: Derive = torch.ops.wanspec.derive_tree_cuda
    return operator


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_built_kernel(name: str, derive_on_gpu: Derive) -> None:
    assert_derives(derive_on_gpu, name, device="cuda")


@pytest.mark.gpu
def test_built_kernel_matches_the_torch_reference_on_the_device(derive_on_gpu: Derive) -> None:
    rng = random.Random(11)
    trees = [random_tree(rng.randint(1, 1024), rng) for _ in range(256)]
    parents, indptr, words = (
        x.cuda() if isinstance(x, Tensor) else x for x in pack(trees, padding=100)
    )
    for got, want in zip(
        derive_on_gpu(parents, indptr, words),
        derive_reference(parents, indptr, words),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.gpu
def test_captured_in_a_graph(derive_on_gpu: Derive) -> None:
    """One captured launch serves other trees of the same capacity."""
    capacity = 300
    parents = torch.full((capacity,), -1, dtype=torch.int32, device="cuda")
    indptr = torch.zeros(4, dtype=torch.int32, device="cuda")
    derive_on_gpu(parents, indptr, 4)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = derive_on_gpu(parents, indptr, 4)
    rng = random.Random(3)
    for sizes in ((1, 1, 1), (100, 100, 100), (7, 200, 64)):
        trees = [random_tree(size, rng) for size in sizes]
        padding = capacity - sum(sizes)
        new_parents, new_indptr, _ = pack(trees, padding)
        parents.copy_(new_parents)
        indptr.copy_(new_indptr)
        graph.replay()
        for got, want in zip(outputs, derive_by_loops(trees, padding, 4), strict=True):
            torch.testing.assert_close(got.cpu(), want, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("parents", "indptr", "message"),
    [
        (torch.zeros(4).long(), torch.zeros(2).int(), "parents: expected int32, got Long"),
        (torch.zeros(4, 1).int(), torch.zeros(2).int(), "parents: expected one dimension"),
        (torch.zeros(8).int()[::2], torch.zeros(2).int(), "parents: expected a contiguous"),
        (torch.zeros(4).int(), torch.zeros(0).int(), "indptr: expected 1 to"),
    ],
)
def test_errors_say_what_was_expected(
    parents: Tensor, indptr: Tensor, message: str, derive_on_gpu: Derive
) -> None:
    on_device = torch.empty_strided(
        parents.shape, parents.stride(), dtype=parents.dtype, device="cuda"
    )
    with pytest.raises(RuntimeError, match=message):
        derive_on_gpu(on_device, indptr.cuda(), 1)
