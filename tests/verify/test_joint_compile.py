"""The kernels of `block` and `traversal` compile for sm_80 and sm_90; no GPU is needed."""

import pytest

from tests.compile_kernels import run_compiled

SCRIPT = """
from tests.compile_kernels import compile_for_gpus
from wanspec_kernels.verify import joint_launches

TYPES = {{
    "positions_ptr": "*i64", "seed_ptr": "*i64", "trees_ptr": "*i64",
    "out_mass_ptr": "*i64", "mass_ptr": "*i64",
    "temperature_ptr": "*fp32", "top_p_ptr": "*fp32", "min_p_ptr": "*fp32",
    "out_largest_ptr": "*fp32", "largest_ptr": "*fp32",
    "out_cutoff_ptr": "*fp32", "cutoff_ptr": "*fp32",
    "acceptance_ptr": "*fp64", "outside_ptr": "*fp64", "residual_ptr": "*fp64",
    "replacement_ptr": "*i1", "logits_ptr": {logits!r},
}}
kernel = joint_launches.{kernel}
signature = {{
    name: TYPES.get(name, "*i32" if name.endswith("_ptr") else "i32")
    for name in kernel.arg_names
    if not name.isupper()
}}
constants = dict(MASKED=True, BLOCK=256, SUPPORT=16, ENTRIES=32)
constants = {{name: value for name, value in constants.items() if name in kernel.arg_names}}
compile_for_gpus(kernel, signature, constants, num_warps=8, **joint_launches.EXACT)
"""


@pytest.mark.parametrize("kernel", ["row_statistics_kernel", "verify_joint_kernel"])
def test_compiles(kernel: str) -> None:
    run_compiled(SCRIPT.format(kernel=kernel, logits="*bf16"))
