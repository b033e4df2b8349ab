"""Device functions of a group: the programs that share one tree's rows.

Each program of a group of G takes every G-th block of a row. What they exchange lies in two buffers
used in turn, so that a program may write the next value while another still reads the last.
`epoch` counts a group's meetings; all of its programs agree on it, and on every value exchanged.
"""

# mypy: ignore-errors

import triton
import triton.language as tl

from wanspec_kernels.verify.row_kernels import LOWEST, total_mass


@triton.jit
def meet(counter_ptr, epoch, GROUP: tl.constexpr):
    """Wait until the whole group is here; what its programs wrote before, each can read after."""
    tl.debug_barrier()
    if GROUP > 1:
        tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
        while tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") < (epoch + 1) * GROUP:
            pass
        tl.debug_barrier()
    return epoch + 1


@triton.jit
def exchange(
    value,  # int64
    group,  # (counter_ptr, slots_ptr, rank)
    epoch,
    GROUP: tl.constexpr,
):
    """[GROUP] int64: every program's value."""
    counter_ptr, slots_ptr, rank = group
    slots_ptr += (epoch & 1) * (2 * GROUP)
    tl.store(slots_ptr + rank, value)
    epoch = meet(counter_ptr, epoch, GROUP)
    # Past the first-level cache, which is not coherent.
    return tl.load(slots_ptr + tl.arange(0, GROUP), cache_modifier=".cg"), epoch


@triton.jit
def group_max(value, group, epoch, GROUP: tl.constexpr):
    if GROUP > 1:
        values, epoch = exchange(value, group, epoch, GROUP)
        value = tl.max(values)
    return value, epoch


@triton.jit
def group_sum(value, group, epoch, GROUP: tl.constexpr):
    if GROUP > 1:
        values, epoch = exchange(value, group, epoch, GROUP)
        value = tl.sum(values)
    return value, epoch


@triton.jit
def group_sum_pair(first, second, group, epoch, GROUP: tl.constexpr):
    if GROUP > 1:
        counter_ptr, slots_ptr, rank = group
        slots_ptr += (epoch & 1) * (2 * GROUP)
        tl.store(slots_ptr + rank, first)
        tl.store(slots_ptr + GROUP + rank, second)
        epoch = meet(counter_ptr, epoch, GROUP)
        first = tl.sum(tl.load(slots_ptr + tl.arange(0, GROUP), cache_modifier=".cg"))
        second = tl.sum(tl.load(slots_ptr + GROUP + tl.arange(0, GROUP), cache_modifier=".cg"))
    return first, second, epoch


@triton.jit
def group_mass(largest, mass, inverse_temperature, group, epoch, GROUP: tl.constexpr):
    """`row_largest_and_mass` of the whole row."""
    if GROUP > 1:
        both = (largest.to(tl.int32, bitcast=True).to(tl.int64) << 32) | mass.to(
            tl.int32, bitcast=True
        ).to(tl.int64)
        both, epoch = exchange(both, group, epoch, GROUP)
        units = (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        masses = (both & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)
        largest = tl.max(units)
        mass = total_mass(tl.maximum(units, LOWEST), masses, inverse_temperature)
    return largest, mass, epoch


@triton.jit
def group_concatenate(
    values,  # [N] float32
    buffer_ptr,  # [2, GROUP * N] float32
    group,
    epoch,
    N: tl.constexpr,
    GROUP: tl.constexpr,
):
    """[GROUP * N]: the values of all the programs."""
    if GROUP > 1:
        counter_ptr, rank = group[0], group[2]
        buffer_ptr += (epoch & 1) * (GROUP * N)
        tl.store(buffer_ptr + rank * N + tl.arange(0, N), values)
        epoch = meet(counter_ptr, epoch, GROUP)
        values = tl.load(buffer_ptr + tl.arange(0, GROUP * N), cache_modifier=".cg")
    return values, epoch
