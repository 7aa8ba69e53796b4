"""Which floating-point type this machine multiplies fastest.

Without units for bfloat16 torch multiplies it on a CPU one number at a time, more than a hundred times slower than
float32 (docs/log.md, 2026-11-24). With them most CPUs gain, but not all: an Intel Xeon whose matrix units (AMX) are not
to be had multiplies it half as fast as float32 (docs/log.md, 2026-11-27). So units are asked for, then timed.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16")
"""Names in `torch.cpu.get_capabilities()`."""

NARROW = ("DEFAULT", "NO AVX", "AVX2")
"""`torch.backends.cpu.get_cpu_capability()` where torch leaves such units alone (`ATEN_CPU_CAPABILITY=avx2`)."""


MIN_SPEEDUP = 1.2
"""How much faster than float32 a CPU's units have to multiply bfloat16 to be used."""

TIMED, REPEATS = 512, 7
"""Rows, inputs and outputs of the product that is timed, and how often: 0.05 seconds."""


def matmul_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has units for it that make products faster, else float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities, allowed = torch.cpu.get_capabilities(), torch.backends.cpu.get_cpu_capability() not in NARROW
        has_units = device.type == "cpu" and allowed and any(capabilities.get(unit, False) for unit in BFLOAT16_UNITS)
        native = has_units and bfloat16_speedup() >= MIN_SPEEDUP
    return torch.bfloat16 if native else torch.float32


@cache
def bfloat16_speedup() -> float:
    """Seconds of a product in float32 over those in bfloat16, on this CPU; measured once a process."""
    pairs = {dtype: torch.ones(2, TIMED, TIMED, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(pairs, float("inf"))
    for _ in range(REPEATS):  # in turn, so that other work on the machine slows both
        for dtype, (x, weight) in pairs.items():
            started = time.perf_counter()
            F.linear(x, weight)
            best[dtype] = min(best[dtype], time.perf_counter() - started)
    return best[torch.float32] / best[torch.bfloat16]


def trainer_precision(accelerator: Any) -> str:
    """The trainer's `precision` where a config leaves it out: bf16-mixed where that is fast, else 32-true."""
    on_gpu = torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda")
    dtype = matmul_dtype(torch.device("cuda" if on_gpu else "cpu"))
    return "bf16-mixed" if dtype == torch.bfloat16 else "32-true"


HALF = ("16", "16-mixed")
"""Values of `trainer.precision` that train in float16 with a loss scale."""


def check_precision(precision: Any, accelerator: Any, model: str) -> None:
    """Raise ValueError for float16 with a loss scale where it would not be that: on a CPU, or of policies.

    model: the path of the module's class.
    """
    if str(precision) not in HALF:
        return
    if model.endswith("PolicyModule"):
        reason = "reinforcement learning clips gradients before the loss scale is taken out"
        raise ValueError(f"trainer.precision {precision}: {reason}; use bf16-mixed")
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        raise ValueError(f"trainer.precision {precision} needs a GPU; on a CPU use bf16-mixed")


def loss_scale(trainer: Any) -> float | None:
    """By what the loss is multiplied in this step, so that small gradients are not 0 in float16; None without it.

    Lightning's plugin divides the gradients by it before `on_before_optimizer_step`, skips a step in which one is not
    finite and halves it then, and keeps it in checkpoints.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else float(scaler.get_scale())


def gathered_dtype(precision: str) -> torch.dtype | None:
    """The type in which sharded matrices are gathered under this `trainer.precision`; None is their own."""
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
