"""The kernels compile for sm_80 and sm_90; no GPU is needed."""

import pytest

from tests.compile_kernels import run_compiled

COMMON = """
from tests.compile_kernels import compile_for_gpus
from wanspec_kernels.verify import launches

def types(kernel, logits):
    int64 = ("positions_ptr", "seed_ptr")
    float32 = ("inverse_temperature_ptr", "top_p_ptr", "min_p_ptr")
    signature = {}
    for name in kernel.arg_names:
        if name.endswith("_ptr"):
            signature[name] = (
                "*i64" if name in int64 else "*fp32" if name in float32 else "*i1"
                if name == "replacement_ptr" else logits if name == "logits_ptr" else "*i32"
            )
        elif not name.isupper():
            signature[name] = "i32"
    return signature
"""
MATCH = """
kernel = launches.verify_match_kernel
compile_for_gpus(kernel, types(kernel, {logits!r}), dict(BLOCK=256), num_warps=8, **launches.EXACT)
"""
REJECTION = """
kernel = launches.verify_rejection_kernel
constants = dict(BLOCK=256, SUPPORT=16, ENTRIES=16)
compile_for_gpus(kernel, types(kernel, {logits!r}), constants, num_warps=8, **launches.EXACT)
"""


@pytest.mark.parametrize("script", [MATCH, REJECTION], ids=["match", "rejection"])
def test_compiles(script: str) -> None:
    run_compiled(COMMON + script.format(logits="*bf16"))
