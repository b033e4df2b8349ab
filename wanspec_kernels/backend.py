"""Which implementation of an operation runs: Triton kernels or plain torch."""

import logging
import os
from functools import cache
from importlib.util import find_spec

import torch

logger = logging.getLogger(__name__)


def choose_backend(
    operation: str, backend: str, device: torch.device, plain: tuple[str, ...] = ("reference",)
) -> str:
    """The backend that runs: "triton" or one of `plain`, whose first serves "auto" off CUDA.

    Raises:
        ValueError: `backend` is none of them.
        RuntimeError: it cannot run here.
    """
    if backend == "auto":
        chosen = "triton" if device.type == "cuda" and _triton_installed() else plain[0]
        _log_choice(operation, device.type, chosen)
        return chosen
    if backend not in ("triton", *plain):
        names = ", ".join(("auto", "triton", *plain))
        raise ValueError(f"{operation}: expected a backend of {names}, got {backend}")
    if backend == "triton":
        if not _triton_installed():
            raise RuntimeError(f"{operation}: backend triton: the package triton is not installed")
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise RuntimeError(
                f"{operation}: backend triton: expected tensors on cuda, got {device} "
                "(TRITON_INTERPRET=1 runs the kernels on the CPU)"
            )
    return backend


@cache
def _triton_installed() -> bool:
    return find_spec("triton") is not None


@cache
def _log_choice(operation: str, device_type: str, chosen: str) -> None:
    logger.info("%s on %s: backend %s", operation, device_type, chosen)
