"""The kernels compile for sm_80 and sm_90; no GPU is needed."""

import pytest

from tests.compile_kernels import run_compiled

SCRIPT = """
import torch
from tests.compile_kernels import compile_for_gpus
from wanspec_kernels.attention import launch
from wanspec_kernels.attention.tree_attention_kernels import (
    merge_splits_kernel, tree_attention_kernel,
)

def types(kernel, element, out):
    special = dict(
        out_ptr=out, query_ptr=element, k_ptr=element, v_ptr=element, partial_ptr="*fp32",
        max_ptr="*fp32", sum_ptr="*fp32", ancestor_bits_ptr="*i64", scale_log2="fp32",
    )
    constant = ("BLOCK", "GROUP", "HEAD", "PAGE", "IS_", "PRECISION")
    return {{
        name: special.get(name, "*i32" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names if not name.startswith(constant)
    }}

dim, dtype, element = {dim}, {dtype}, "{element}"
shape = launch.choose_launch(64 * 4, 8, 4096, dim, dtype, 132)
compile_for_gpus(
    tree_attention_kernel,
    types(tree_attention_kernel, element, element),
    dict(
        GROUP=4, HEAD_DIM=dim, PAGE_SIZE=16, BLOCK_ROWS=shape.block_rows,
        BLOCK_SLOTS=shape.block_slots, BLOCK_DIM=launch._next_power_of_two(dim), IS_SPLIT=True,
        PRECISION="ieee" if dtype == torch.float32 else "tf32",
    ),
    num_warps=shape.num_warps, num_stages=shape.num_stages,
)
compile_for_gpus(
    merge_splits_kernel,
    types(merge_splits_kernel, element, element),
    dict(HEAD_DIM=dim, BLOCK_SPLITS=32, BLOCK_DIM=launch._next_power_of_two(dim)),
    num_warps=4,
)
"""


@pytest.mark.parametrize(
    ("dim", "dtype", "element"),
    [(128, "torch.bfloat16", "*bf16"), (48, "torch.float32", "*fp32")],
)
def test_compiles(dim: int, dtype: str, element: str) -> None:
    run_compiled(SCRIPT.format(dim=dim, dtype=dtype, element=element))
