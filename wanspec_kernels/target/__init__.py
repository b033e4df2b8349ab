"""A transformers model that runs over batches of token trees."""

from wanspec_kernels.target.decoder import InvalidLogitsError, TreeDecoder
from wanspec_kernels.target.model import Target
from wanspec_kernels.target.requirements import UnsupportedModelError

__all__ = ["InvalidLogitsError", "Target", "TreeDecoder", "UnsupportedModelError"]
