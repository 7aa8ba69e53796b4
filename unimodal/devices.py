"""Which device a command works on."""

from __future__ import annotations

import torch

COMPUTING = ("cpu", "cuda")
"""Kinds of devices that decoding and tokenizing are made for."""


def usable_device(device: torch.device | str | None = None) -> torch.device:
    """The device of this name; without one, CUDA's first where there is any, else the CPU.

    Raises ValueError, in one line, for a device that is not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device {str(device)!r} here: {str(error).splitlines()[0]}") from error
    if found.type not in COMPUTING:
        raise ValueError(f"the device is one of {', '.join(COMPUTING)}, got {str(device)!r}")
    return found


def flush_denormals() -> bool:
    """Let a CPU take float32 numbers below 1.2e-38 for 0; returns whether it can. Threads that start later follow.

    Processors compute with such numbers a hundred times slower. Attention that is sure of itself makes them by the
    million: training the demo's image tokenizer in float32 fell from 100 images a second to 12 (docs/log.md,
    2026-11-27). Products in bfloat16 do not know them.
    """
    return torch.set_flush_denormal(True)


PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0}
"""Dense bf16 TFLOP/s of a GPU whose name holds the key, by the vendors' datasheets."""


def known_peak(device: torch.device) -> float | None:
    """TFLOP/s of a GPU by its name; None for others and for a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAKS.items() if key in name), None)
