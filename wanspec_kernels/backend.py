"""Which implementation of an operation runs: CUDA or Triton kernels, or plain torch."""

import logging
import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch

logger = logging.getLogger(__name__)


def choose_backend(
    operation: str,
    backend: str,
    device: torch.device,
    plain: tuple[str, ...] = ("reference",),
    cuda_lacks: Callable[[], str | None] | None = None,
) -> str:
    """The backend that runs: "cuda", "triton" or one of `plain`, whose first serves "auto" on CPUs.

    An operation that has CUDA kernels passes `cuda_lacks`: what they lack here, or None.

    Raises:
        ValueError: `backend` is none of them.
        RuntimeError: it cannot run here.
    """
    if backend == "auto":
        chosen = plain[0]
        if device.type == "cuda" and cuda_lacks is not None and cuda_lacks() is None:
            chosen = "cuda"
        elif device.type == "cuda" and _triton_installed():
            chosen = "triton"
        _log_choice(operation, device.type, chosen)
        return chosen
    kernels = ("triton",) if cuda_lacks is None else ("cuda", "triton")
    if backend not in (*kernels, *plain):
        names = ", ".join(("auto", *kernels, *plain))
        raise ValueError(f"{operation}: expected a backend of {names}, got {backend}")
    if backend == "cuda" and cuda_lacks is not None:
        lack = cuda_lacks()
        if lack is not None:
            raise RuntimeError(f"{operation}: backend cuda: {lack}")
    if backend == "triton":
        if not _triton_installed():
            raise RuntimeError(f"{operation}: backend triton: the package triton is not installed")
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise RuntimeError(
                f"{operation}: backend triton: expected tensors on cuda, got {device} "
                "(TRITON_INTERPRET=1 runs the kernels on the CPU)"
            )
    return backend


@torch.compiler.assume_constant_result
def _triton_installed() -> bool:
    return find_spec("triton") is not None


@torch.compiler.assume_constant_result
def _log_choice(operation: str, device_type: str, chosen: str) -> None:
    _log_once(operation, device_type, chosen)


@cache
def _log_once(operation: str, device_type: str, chosen: str) -> None:
    logger.info("%s on %s: backend %s", operation, device_type, chosen)
