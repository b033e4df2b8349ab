"""Compiles Triton kernels for GPUs that need not be there.

Interpreted kernels cannot be compiled, so a test calls a script of its own through `run_compiled`.
"""

import os
import subprocess
import sys
from typing import Any

ARCHITECTURES = (80, 90)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def compile_for_gpus(
    kernel: Any,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    architectures: tuple[int, ...] = ARCHITECTURES,
    **options: Any,
) -> None:
    """Compile a `triton.jit` function; `signature` types its other arguments, say ``"*fp32"``.

    Raises:
        Exception: whatever Triton raises for a kernel that does not compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    for architecture in architectures:
        source = ASTSource(kernel, names, constexprs=constexprs)
        triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def run_compiled(script: str) -> None:
    """Run Python code in a process where Triton compiles; fail with its output if it fails."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": ROOT}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
