"""csrc/noise.cuh gives the bits of wanspec_kernels/noise.py; it runs on the host here."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wanspec_kernels import noise
from wanspec_kernels.noise import Stream

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    path = tmp_path_factory.mktemp("noise") / "noise.so"
    subprocess.run(
        [compiler, "-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", f"-I{CSRC}"]
        + [str(HERE / "noise_host.cpp"), "-o", str(path)],
        check=True,
    )
    return ctypes.CDLL(str(path))


def call(function: Callable[..., Any], *arguments: Any) -> None:
    function(
        *(ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments)
    )


@pytest.mark.parametrize("stream", list(Stream))
def test_noise_is_the_same_to_the_bit(library: ctypes.CDLL, stream: Stream) -> None:
    """200,000 words hold some that are refined, and some near 1."""
    tokens = torch.arange(200_000, dtype=torch.int32)
    ours, uniforms = torch.empty(len(tokens)), torch.empty(len(tokens))
    for position, seed in ((5, -3), ((1 << 40) + 1, 1 << 62)):
        key = (ctypes.c_int64(position), ctypes.c_int64(seed), ctypes.c_uint32(stream))
        call(library.gumbels, tokens, ctypes.c_int64(len(tokens)), *key, ours, uniforms)
        where = (torch.tensor(position), torch.tensor(seed), stream)
        assert (noise.words(tokens, *where) < noise.REFINE_BELOW).any()
        assert torch.equal(ours, noise.gumbel_row(len(tokens), *where))
        assert torch.equal(uniforms, noise.uniform(tokens, *where))


def test_weights_are_the_same_to_the_bit(library: ctypes.CDLL) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.cat([-torch.rand(100_000, generator=generator) * 70, torch.tensor([0.0, -64, -1e30])])
    ours = torch.empty(len(x), dtype=torch.int64)
    call(library.weights, x, ctypes.c_int64(len(x)), ours)
    assert torch.equal(ours, noise.weight(x))


def test_bounds_of_noise_hold(library: ctypes.CDLL) -> None:
    """For words of every size, where the bounds' float steps lie, and at both ends."""
    steps = torch.tensor([1 << k for k in range(32)])
    generator = torch.Generator().manual_seed(2)
    words = torch.cat(
        [
            torch.arange(70_000),
            (steps[:, None] + torch.arange(-40, 41)).flatten().clamp(0),
            (1 << 32) - 1 - torch.arange(1000),
            torch.randint(0, 1 << 32, (200_000,), generator=generator),
        ]
    )
    packed = words.to(torch.uint32)
    ours, most = (torch.empty(len(words)) for _ in range(2))
    for fine in range(20):
        count = ctypes.c_int64(len(words))
        call(library.bounds, packed, count, ctypes.c_uint32(fine), ours, most)
        assert (ours <= most).all()
        assert (most - ours)[words >= noise.REFINE_BELOW].max() < 3.5, "a bound that bounds nothing"
