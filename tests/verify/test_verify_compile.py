"""The kernels compile for sm_80 and sm_90; no GPU is needed."""

import pytest

from tests.compile_kernels import run_compiled

SCRIPT = """
from tests.compile_kernels import compile_for_gpus
from wanspec_kernels.verify import launches

def types(kernel):
    int64 = ("positions_ptr", "seed_ptr", "slots_ptr")
    float32 = ("temperature_ptr", "top_p_ptr", "min_p_ptr", "maxima_ptr", "values_ptr")
    signature = {}
    for name in kernel.arg_names:
        if name.endswith("_ptr"):
            signature[name] = (
                "*i64" if name in int64 else "*fp32" if name in float32 else "*i1"
                if name == "replacement_ptr" else "*bf16" if name == "logits_ptr" else "*i32"
            )
        elif not name.isupper():
            signature[name] = "i32"
    return signature

kernel = launches.verify_RULE_kernel
constants = dict(
    MAX_TOP_K=64, CAPACITY=128, MAXIMA=128, SHIFT=16, MASKED=IS_MASKED, GROUP=PROGRAMS, BLOCK=128
)
if "SUPPORT" in kernel.arg_names:
    constants |= dict(SUPPORT=16, ENTRIES=16)
compile_for_gpus(
    kernel, types(kernel), constants, num_warps=4,
    launch_cooperative_grid=PROGRAMS > 1, **launches.EXACT
)
"""


@pytest.mark.parametrize(
    ("rule", "group", "masked"),
    [("match", 1, False), ("match", 8, True), ("rejection", 8, True)],
)
def test_compiles(rule: str, group: int, masked: bool) -> None:
    script = SCRIPT.replace("RULE", rule).replace("PROGRAMS", str(group))
    run_compiled(script.replace("IS_MASKED", str(masked)))
