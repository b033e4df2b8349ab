"""Plan: what one request wants of a pass."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Plan:
    """Tokens to compute; arrays are int64 unless said otherwise."""

    token_ids: NDArray[np.int64]  # [n]
    positions: NDArray[np.int64]  # [n], rotary: the token's index in the text
    slots: NDArray[np.int64]  # [n], where each token's keys and values go
    visible: NDArray[np.bool_]  # [n, slots in use]: which slots each token attends to, its own too
    rows: NDArray[np.int64]  # tokens whose logits are wanted
