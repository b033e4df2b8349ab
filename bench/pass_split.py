"""Where the device's time in a pass of a Llama goes, kernel by kernel, by torch's profiler."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

PRODUCT_NAMES = ("gemm", "gemv", "nvjet", "cutlass", "splitk")
# A layer's products since its attention, and what stands behind each until the next one.
PRODUCTS = ("attention's output", "gate and up", "down", "query, key and value")
BEHIND = ("attention", "norms", "activation", "norms", "rotary")
FIRST = PRODUCTS.index("down") + 1  # a pass begins with the norm before the first layer's query


def split_pass(run: Callable[[], Any], passes: int = 2) -> dict[str, Any]:
    """Microseconds and kernels a pass of each part, of `run` replaying a graph."""
    run()
    torch.cuda.synchronize()
    times: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for _ in range(passes):
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
            run()
            torch.cuda.synchronize()
        events = [e for e in profiler.events() if e.device_type == DeviceType.CUDA]
        events.sort(key=lambda e: e.time_range.start)
        found = [(e.name, e.time_range.end - e.time_range.start) for e in events]
        for (name, duration), part in zip(found, parts_of([n for n, _ in found]), strict=True):
            times[part] += duration
            kernels[part] += 1
            names[f"{part}: {name[:90]}"] += duration
    return {
        "parts": {part: [times[part] / passes, kernels[part] / passes] for part in sorted(times)},
        "longest": {name: time / passes for name, time in names.most_common(25)},
    }


def parts_of(names: Iterable[str]) -> list[str]:
    """The part of a pass that each kernel belongs to, by its name and by what ran before it.

    >>> parts_of(["vectorized_elementwise_kernel", "nvjet_tst_64x8", "reduce_kernel"])
    ['norms', 'lm_head', 'norms']
    """
    parts: list[str] = []
    products = FIRST  # since the last attention
    last_product: list[int] = []  # kernels of the product that may turn out to be lm_head
    for name in names:
        lower = name.lower()
        if "tree_attention" in lower or "merge_splits" in lower or "merge_partials" in lower:
            parts.append("attention")
            products, last_product = 0, []
        elif "write_kernel" in lower:
            parts.append("key and value pages")
        elif "derive_tree" in lower:
            parts.append("tree")
        elif "memcpy" in lower or "memset" in lower:
            parts.append("copies")
        elif any(word in lower for word in PRODUCT_NAMES):
            if "reduce" not in lower:  # else it adds up what the product before it has split
                products += 1
                last_product = []
            last_product.append(len(parts))
            parts.append(PRODUCTS[min(products, len(PRODUCTS)) - 1])
        else:
            parts.append(BEHIND[min(products, len(BEHIND) - 1)])
    for i in last_product:
        parts[i] = "lm_head"
    return parts
