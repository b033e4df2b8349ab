"""The daemon starts where Triton is not installed, and knows only its share of the package."""

import subprocess
import sys

ALLOWED = {
    "bundled",
    "command_line",
    "extension",  # by way of tree, which looks for it on a GPU only
    "models",
    "noise",
    "sampling",
    "tree",
    "wire",
}

SCRIPT = """
import sys
sys.modules["triton"] = None  # an import of it raises
import drafter.main, drafter.home
print(*sys.modules)
"""


def test_importing_the_daemon_loads_its_share_only():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    ours = {name.split(".")[1] for name in loaded if name.startswith("wanspec_kernels.")}
    assert ours == ALLOWED
    assert "transformers" not in loaded
    assert not [name for name in loaded if name.startswith("triton.")]
