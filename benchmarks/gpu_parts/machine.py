"""The device: its name, and the rates of products and copies that all other figures are measured against."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

JSON = dict[str, Any]


def seconds(work: Callable[[], Any], repeats: int = 10, warm_up: int = 3) -> float:
    """Median time of some work on the device."""
    for _ in range(warm_up):
        work()
    found = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()  # pyright: ignore[reportCallIssue]
        work()
        end.record()  # pyright: ignore[reportCallIssue]
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1000)
    return statistics.median(found)


def device() -> JSON:
    """Name, versions, bf16 products of 8,192 on random data, and bytes read and written by a copy of 4 GiB."""
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    source = torch.empty(2**32, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return {
        "name": torch.cuda.get_device_name(),
        "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "matmul_tflops": round(2 * 8192**3 / seconds(lambda: a @ b) / 1e12, 1),
        "copy_tb_per_s": round(2 * 2**32 / seconds(lambda: target.copy_(source)) / 1e12, 2),
    }
