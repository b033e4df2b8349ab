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

dim, dtype, element, pages, unused = {dim}, {dtype}, "{element}", "{pages}", {unused}
special = dict(
    out_ptr=element, query_ptr=element, k_ptr=pages, v_ptr=pages, partial_ptr="*fp32",
    max_ptr="*fp32", sum_ptr="*fp32", ancestor_bits_ptr="*i64", factor="fp32", cap_log2="fp32",
    sinks_ptr=element, k_scale_ptr="*fp32", v_scale_ptr="*fp32",
)

def types(kernel):
    return {{
        name: special.get(name, "*i32" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names if not name.isupper() and name not in unused
    }}

shape = launch.choose_launch(64 * 4, 8, 4096, dim, dtype, 132)
compile_for_gpus(
    tree_attention_kernel,
    types(tree_attention_kernel),
    dict.fromkeys(unused) | dict(
        GROUP=4, HEAD_DIM=dim, PAGE_SIZE=16, BLOCK_ROWS=shape.block_rows,
        BLOCK_SLOTS=shape.block_slots, BLOCK_DIM=launch._next_power_of_two(dim), IS_SPLIT=True,
        PRECISION="ieee" if dtype == torch.float32 else "tf32",
    ),
    {architectures},
    num_warps=shape.num_warps, num_stages=shape.num_stages,
)
compile_for_gpus(
    merge_splits_kernel,
    types(merge_splits_kernel),
    dict(HEAD_DIM=dim, BLOCK_SPLITS=32, BLOCK_DIM=launch._next_power_of_two(dim)),
    num_warps=4,
)
"""
FLOAT8 = {"k_scale_ptr", "v_scale_ptr"}
OTHERS = {"window", "cap_log2", "sinks_ptr"}


@pytest.mark.parametrize(
    ("dim", "dtype", "element", "pages", "unused", "architectures"),
    [
        (128, "torch.bfloat16", "*bf16", "*bf16", FLOAT8 | OTHERS, (80, 90)),
        (48, "torch.float32", "*fp32", "*fp32", FLOAT8 | OTHERS, (80, 90)),
        (128, "torch.bfloat16", "*bf16", "*bf16", FLOAT8, (80, 90)),
        (64, "torch.bfloat16", "*bf16", "*fp8e4nv", set(), (90,)),
    ],
    ids=["plain", "plain, float32", "all but float8", "all"],
)
def test_compiles(
    dim: int,
    dtype: str,
    element: str,
    pages: str,
    unused: set[str],
    architectures: tuple[int, ...],
) -> None:
    run_compiled(
        SCRIPT.format(
            dim=dim,
            dtype=dtype,
            element=element,
            pages=pages,
            unused=unused,
            architectures=architectures,
        )
    )
