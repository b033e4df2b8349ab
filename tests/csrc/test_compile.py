"""Every CUDA source compiles for every architecture that setup.py names; no GPU is needed."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).parents[2] / "csrc"
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
ARCHITECTURES = ("80", "90a")

# torch's way of building extensions: conversions and operators of halves are spelled out.
TORCH_DEFINES = [
    f"-D__CUDA_NO_{name}__"
    for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS", "HALF2_OPERATORS")
]

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH or in /usr/local/cuda")


@needs_nvcc
@pytest.mark.parametrize("source", sorted(CSRC.rglob("*.cu")), ids=lambda path: path.name)
def test_kernels_compile_without_spills(source: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [str(NVCC), "-std=c++17", "-O3", "-c", str(source), "-o", str(tmp_path / "out.o")]
        + [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
        + ["--threads=0"]
        + TORCH_DEFINES
        + ["-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra", "-Xptxas", "-v"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    report = result.stderr
    kernels = re.findall(r"Compiling entry function '(\w+)'", report)
    usage = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report
    )
    assert kernels, f"{source.name} holds no kernel:\n{report}"
    assert len(usage) >= len(kernels), report
    for architecture in ARCHITECTURES:
        assert f"sm_{architecture}'" in report
    assert set(usage) == {("0", "0", "0")}, report


@needs_nvcc
def test_bindings_compile(tmp_path: Path) -> None:
    """Against the headers of whichever torch is installed; a CPU build lacks but one of them."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    cuda_include = cuda_toolkit_include()
    torch_include = Path(torch.__file__).parent / "include"
    generated = Path("c10/cuda/impl/cuda_cmake_macros.h")
    if not (torch_include / generated).exists():  # only a CUDA build generates it
        (tmp_path / generated).parent.mkdir(parents=True)
        (tmp_path / generated).touch()
    python_include = sysconfig.get_paths()["include"]
    if not Path(python_include, "Python.h").exists():
        pytest.skip("no Python headers")
    system = [f"-isystem{path}" for path in (torch_include, cuda_include, python_include)]
    result = subprocess.run(
        [compiler, "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{tmp_path}"]
        + [*system, str(CSRC / "bindings.cpp")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def cuda_toolkit_include() -> Path:
    """Beside nvcc's true place, which nvcc says itself: what is on PATH may be a wrapper."""
    dry_run = subprocess.run(
        [str(NVCC), "--dryrun", "-x", "cu", "-c", "none.cu"], capture_output=True, text=True
    )
    here = re.search(r"^#\$ _HERE_=(.+)$", dry_run.stderr, re.MULTILINE)
    assert here, dry_run.stderr
    include = Path(here[1]).parent / "include"
    if not (include / "cuda_runtime_api.h").exists():
        pytest.skip(f"no cuda_runtime_api.h in {include}")
    return include
