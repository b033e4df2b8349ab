"""Projections of one input, made by one product: query, key and value; gate and up.

A model's forward stays its own: it calls its projections one by one. The first call makes the whole
product, and the others take their parts of it.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def merge_projections(model: nn.Module) -> None:
    """Lay the weights of each group side by side, in place, and free the old ones as it goes.

    Only plain ``nn.Linear`` projections are merged, of one kind and with weights of their own: what
    is quantised, adapted, hooked, tied, split over devices or merged already stays as it is. The
    state dict keeps its names and shapes. The weights lie elsewhere afterwards, so a CUDA graph
    that somebody captured of `model` before is void.
    """
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (shared if id(parameter) in seen else seen).add(id(parameter))
    # A list of projections would keep their weights alive.
    parents = [m for m in model.modules() if any(hasattr(m, n) for names in GROUPS for n in names)]
    for parent in parents:
        for names in GROUPS:
            for kin in _alike(parent, names, shared):
                _merge(parent, kin)


class MergedProduct(nn.Module):
    """The weights of several projections, and what their product has given and nobody has taken."""

    def __init__(self, projections: list[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [projection.out_features for projection in projections]
        self.weight = _joined([projection.weight for projection in projections])
        biases = [b for p in projections for name, b in p.named_parameters() if name == "bias"]
        self.bias = _joined(biases) if biases else None
        self._input: Tensor | None = None
        self._parts: dict[int, Tensor] = {}

    def part(self, index: int, x: Tensor) -> Tensor:
        """[..., sizes[index]] of one projection, a view of the whole product.

        One that comes with another input than that whose parts wait is computed by itself. Inputs
        are told apart as objects: between the calls of a group nobody may change theirs in place.
        """
        if index not in self._parts:  # nobody has called yet, or this one for the second time
            product = functional.linear(x, self.weight, self.bias)
            self._parts = dict(enumerate(product.split(self.sizes, dim=-1)))
            self._input = x
        elif x is not self._input:
            return functional.linear(x, *self.rows(index))
        part = self._parts.pop(index)
        if not self._parts:
            self._input = None
        return part

    def rows(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of one projection, views."""
        weight = self.weight.split(self.sizes)[index]
        return weight, None if self.bias is None else self.bias.split(self.sizes)[index]

    def _save_to_state_dict(self, *_: Any) -> None:
        """Its projections save and load their own rows."""

    def _load_from_state_dict(self, *_: Any) -> None:
        pass


class MergedProjection(nn.Module):
    """Stands where an ``nn.Linear`` stood, and gives what that gave."""

    def __init__(self, merged: MergedProduct, index: int) -> None:
        super().__init__()
        self.merged = merged
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        return self.merged.part(self.index, x)

    @property
    def weight(self) -> Tensor:
        return self.merged.rows(self.index)[0]

    @property
    def bias(self) -> Tensor | None:
        return self.merged.rows(self.index)[1]

    @property
    def in_features(self) -> int:
        return self.merged.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.merged.sizes[self.index]

    def _own(self, prefix: str) -> dict[str, Tensor]:
        named = {prefix + "weight": self.weight, prefix + "bias": self.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for name, tensor in self._own(prefix).items():
            destination[name] = tensor if keep_vars else tensor.detach()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, tensor in self._own(prefix).items():
            if name not in state_dict:
                missing_keys.append(name)
            elif state_dict[name].shape != tensor.shape:
                error_msgs.append(
                    f"{name}: expected {list(tensor.shape)}, got {list(state_dict[name].shape)}"
                )
            else:
                with torch.no_grad():
                    tensor.copy_(state_dict[name])


def _alike(parent: nn.Module, names: tuple[str, ...], shared: set[int]) -> list[list[str]]:
    """Those of `names` that may be merged: lists of two or more of one kind."""
    kinds: dict[tuple[object, ...], list[str]] = {}
    for name in names:
        child = getattr(parent, name, None)
        if not _is_plain(child) or any(id(p) in shared for p in child.parameters()):
            continue
        weight, bias = child.weight, child.bias
        kind = (child.in_features, weight.dtype, weight.device, weight.requires_grad, bias is None)
        kinds.setdefault(kind, []).append(name)
    return [kin for kin in kinds.values() if len(kin) > 1]


def _is_plain(module: object) -> TypeGuard[nn.Linear]:
    """Nothing but torch's own product, which nobody listens to and nobody has replaced."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    hooked = any(hooks for name, hooks in vars(module).items() if name.endswith("_hooks"))
    extended = set(module.state_dict()) - {"weight", "bias"}
    return not hooked and not extended and all(type(p) is nn.Parameter for p in module.parameters())


def _merge(parent: nn.Module, names: list[str]) -> None:
    merged = MergedProduct([getattr(parent, name) for name in names])
    for index, name in enumerate(names):
        setattr(parent, name, MergedProjection(merged, index))
    # Freed pieces are too small for what is merged next: on CUDA they would pile up.
    torch.cuda.empty_cache()


def _joined(tensors: Sequence[Tensor]) -> nn.Parameter:
    with torch.no_grad():
        return nn.Parameter(torch.cat(list(tensors)), tensors[0].requires_grad)
