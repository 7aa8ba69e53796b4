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
