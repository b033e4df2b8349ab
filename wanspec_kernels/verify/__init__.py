"""Which nodes of a draft tree the target accepts, and which token follows.

    result = verify_tree(tree, target_logits, sampling, positions)

Importing this package loads no Triton; the first call on a GPU does.
"""

from wanspec_kernels.verify.api import VerifyResult, verify_tree
from wanspec_kernels.verify.draws import Draws

__all__ = ["Draws", "VerifyResult", "verify_tree"]
