"""Builds the optional CUDA extension `wanspec_kernels._C`; everything else is in pyproject.toml.

WANSPEC_BUILD_CUDA=0 never builds it; 1 builds it or fails saying what is missing; unset builds it
where a CUDA torch and nvcc are both there, and installs without it where they are not. pip's build
isolation hides torch: install with `--no-build-isolation` to build. The architectures are named
below, so the machine that builds needs no GPU.
"""

import os
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

ARCHITECTURES = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_90,code=compute_90",  # PTX, for what came after
]


def main() -> None:
    request = os.environ.get("WANSPEC_BUILD_CUDA", "")
    if request not in ("", "0", "1"):
        sys.exit(f"WANSPEC_BUILD_CUDA: expected 0, 1 or nothing, got {request!r}")
    missing = "WANSPEC_BUILD_CUDA=0" if request == "0" else missing_for_cuda()
    if missing is None:
        setup(**cuda_extension(required=request == "1"))
    elif request == "1":
        sys.exit(f"WANSPEC_BUILD_CUDA=1, but the CUDA extension cannot be built: {missing}")
    else:
        print(f"wanspec_kernels: installing without the CUDA extension ({missing})")
        setup()


def missing_for_cuda() -> str | None:
    """What the extension lacks here, or None."""
    try:
        import torch
    except ImportError:
        return "torch is not importable here; pip needs --no-build-isolation to see it"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build"
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is None or not Path(CUDA_HOME, "bin", "nvcc").exists():
        return "nvcc was found neither on PATH nor under CUDA_HOME"
    return None


def cuda_extension(required: bool) -> dict[str, Any]:
    from torch.utils.cpp_extension import BuildExtension, CUDAExtension

    class BuildOrGoWithout(BuildExtension):
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:  # torch and setuptools raise a dozen kinds
                if required:
                    raise
                print(f"wanspec_kernels: WARNING: no CUDA extension, its build failed: {error}")
                self.extensions = []

    extension = CUDAExtension(
        "wanspec_kernels._C",
        sources=["csrc/bindings.cpp", *sorted(map(str, Path("csrc").rglob("*.cu")))],
        depends=sorted(map(str, Path("csrc").rglob("*.*h"))),
        extra_compile_args={"cxx": ["-O3"], "nvcc": ["-O3", "--threads=0", *ARCHITECTURES]},
        optional=not required,
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildOrGoWithout}}


main()
