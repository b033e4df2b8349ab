"""A transformers model that runs over batches of token trees."""

from wanspec_kernels.engine.model.capacity import Capacity
from wanspec_kernels.engine.model.decoder import InvalidLogitsError, TreeDecoder
from wanspec_kernels.engine.model.graphs import CaptureError
from wanspec_kernels.engine.model.model import Target
from wanspec_kernels.engine.model.requirements import UnsupportedModelError

__all__ = [
    "Capacity",
    "CaptureError",
    "InvalidLogitsError",
    "Target",
    "TreeDecoder",
    "UnsupportedModelError",
]
