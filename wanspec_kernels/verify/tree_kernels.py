"""Device functions over one tree and over what is written of its walk."""

# mypy: ignore-errors

import triton
import triton.language as tl

from wanspec_kernels.verify.row_kernels import NO_TOKEN

CHUNK = tl.constexpr(256)


@triton.jit
def inverse(temperature):
    """`sampling.inverse_temperature`."""
    greedy = temperature == 0.0
    return tl.where(greedy, 0.0, tl.div_rn(1.0, tl.where(greedy, 1.0, temperature)))


@triton.jit
def child_of(
    token_ids_ptr,  # [num_nodes] int32, of one tree
    parents_ptr,  # [num_nodes] int32
    num_nodes,
    node,
    token,
):
    """The first child of `node` that carries `token`, or -1."""
    child = tl.full([CHUNK], NO_TOKEN, tl.int32)
    for first in range(0, num_nodes, CHUNK):
        i = first + tl.arange(0, CHUNK)
        inside = i < num_nodes
        parent = tl.load(parents_ptr + i, mask=inside, other=-1)
        found = (parent == node) & (tl.load(token_ids_ptr + i, mask=inside, other=-1) == token)
        child = tl.minimum(child, tl.where(found, i, NO_TOKEN))
    child = tl.min(child)
    return tl.where(child == NO_TOKEN, -1, child)


@triton.jit
def pad(out_ptr, first, end):
    """-1 from `first` on."""
    for start in range(first, end, CHUNK):
        i = start + tl.arange(0, CHUNK)
        tl.store(out_ptr + i, tl.full([CHUNK], -1, tl.int32), mask=i < end)
