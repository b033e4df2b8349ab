"""What a figure has to carry: the machine, the versions and the commit."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("triton", "flashinfer-python", "sgl-kernel", "vllm", "transformers")


def describe(commit: str = "") -> dict[str, Any]:
    """Hardware, versions and commit; the commit is `commit`, $WANSPEC_COMMIT or git's."""
    facts: dict[str, Any] = {
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit or os.environ.get("WANSPEC_COMMIT") or _git_commit(),
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = None
    if facts["vllm"] is None:
        facts["vllm"] = _trimmed_vllm()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "l2_mib": round(properties.L2_cache_size / 2**20, 1),
            "cuda": torch.version.cuda,
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    return facts


def slug(facts: dict[str, Any]) -> str:
    """`h200` for an NVIDIA H200, `cpu` without a GPU: for names of files."""
    words = str(facts.get("gpu") or "cpu").replace("NVIDIA", "").split()
    return words[0].lower() if words else "gpu"


def _trimmed_vllm() -> str | None:
    """A copy of a few of its files has a version but no metadata."""
    try:
        import vllm
    except ImportError:
        return None
    return str(getattr(vllm, "__version__", "unknown"))


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git_commit() -> str:
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    return commit + ("+changes" if _output("git", "status", "--porcelain", "-uno") else "")


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else ""
