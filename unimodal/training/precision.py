"""Which floating-point type this machine multiplies fastest.

CPUs with matrix or vector units for bfloat16 gain by it; on others torch multiplies bfloat16 one number at a time, more
than a hundred times slower than float32 (docs/log.md, 2026-11-24).
"""

from __future__ import annotations

from typing import Any

import torch

BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16")
"""Names in `torch.cpu.get_capabilities()`."""

NARROW = ("DEFAULT", "NO AVX", "AVX2")
"""`torch.backends.cpu.get_cpu_capability()` where torch leaves such units alone (`ATEN_CPU_CAPABILITY=avx2`)."""


def matmul_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has units for it, else float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities, allowed = torch.cpu.get_capabilities(), torch.backends.cpu.get_cpu_capability() not in NARROW
        native = device.type == "cpu" and allowed and any(capabilities.get(unit, False) for unit in BFLOAT16_UNITS)
    return torch.bfloat16 if native else torch.float32


def trainer_precision(accelerator: Any) -> str:
    """The trainer's `precision` where a config leaves it out: bf16-mixed where that is fast, else 32-true."""
    on_gpu = torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda")
    dtype = matmul_dtype(torch.device("cuda" if on_gpu else "cpu"))
    return "bf16-mixed" if dtype == torch.bfloat16 else "32-true"


def gathered_dtype(precision: str) -> torch.dtype | None:
    """The type in which sharded matrices are gathered under this `trainer.precision`; None is their own."""
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
