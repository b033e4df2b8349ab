"""Whether the optional CUDA extension is there, and what of a GPU its kernels need."""

import importlib
import logging
from functools import cache

import torch

logger = logging.getLogger(__name__)


@torch.compiler.assume_constant_result
def has_cuda_extension() -> bool:
    """Load `wanspec_kernels._C` at first use: a drafter on a CPU must not load CUDA."""
    return _load()


@torch.compiler.assume_constant_result
def has_clusters(index: int) -> bool:
    """Whether a CUDA device has thread-block clusters."""
    return torch.cuda.get_device_capability(index) >= (9, 0)


@torch.compiler.assume_constant_result
def is_hopper(index: int) -> bool:
    """Whether a CUDA device runs code of sm_90a, which has no successor."""
    return torch.cuda.get_device_capability(index) == (9, 0)


@cache
def _load() -> bool:
    try:
        importlib.import_module("wanspec_kernels._C")
    except ModuleNotFoundError:
        return False
    except ImportError as error:
        logger.warning("going on without the CUDA extension, which does not load: %s", error)
        return False
    return True
