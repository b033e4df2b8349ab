"""KeyValueStore: one request's keys and values of all layers."""

from __future__ import annotations

from torch import Tensor

STORE_STEP = 256  # slots a store grows by, at least


class KeyValueStore:
    """One request's keys and values, a row a slot; a slot's place says nothing about its order.

    Rotary embedding is already in the keys, so a token may lie anywhere: the plan's `visible` says
    who sees it. A commit therefore moves nothing.
    """

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor, width: int) -> None:
        """Put [kv_heads, n, head_dim] keys and values at `slots`; the store grows to `width`."""
        held = self._layers.get(layer)
        if held is None or held[0].shape[1] < width:
            held = self._grow(layer, held, keys, values, width)
        held[0].index_copy_(1, slots, keys)
        held[1].index_copy_(1, slots, values)

    def read(self, layer: int, width: int) -> tuple[Tensor, Tensor]:
        """[kv_heads, width, head_dim] views."""
        keys, values = self._layers[layer]
        return keys[:, :width], values[:, :width]

    def _grow(
        self,
        layer: int,
        held: tuple[Tensor, Tensor] | None,
        keys: Tensor,
        values: Tensor,
        width: int,
    ) -> tuple[Tensor, Tensor]:
        length = 0 if held is None else held[0].shape[1]
        length = max(length + length // 2, width)
        length = -(-length // STORE_STEP) * STORE_STEP
        grown = []
        for i, like in enumerate((keys, values)):
            # Zeros: a slot that nobody may see still meets a zero weight, and NaN * 0 is NaN.
            tensor = like.new_zeros(like.shape[0], length, like.shape[2])
            if held is not None:
                tensor[:, : held[i].shape[1]] = held[i]
            grown.append(tensor)
        self._layers[layer] = grown[0], grown[1]
        return self._layers[layer]
