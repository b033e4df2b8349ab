"""A transformers model that runs over batches of token trees."""

from wanspec_kernels.target.capacity import Capacity
from wanspec_kernels.target.decoder import InvalidLogitsError, TreeDecoder
from wanspec_kernels.target.graphs import CaptureError
from wanspec_kernels.target.model import Target
from wanspec_kernels.target.requirements import UnsupportedModelError

__all__ = [
    "Capacity",
    "CaptureError",
    "InvalidLogitsError",
    "Target",
    "TreeDecoder",
    "UnsupportedModelError",
]
