"""Whether a model can be trained at all where it is about to be built: refused before anything is allocated."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unimodal.training.optimizers.build import MuonConfig, OptimizerConfig
from unimodal.training.optimizers.roles import parameters_by_role
from unimodal.training.parallel.sharding import ParallelConfig
from unimodal.training.parallel.strategy import ShardedStrategy

GIB = 2**30
CGROUP = Path("/sys/fs/cgroup/memory.max")
"""What a container may take, on Linux."""


def check_memory(
    model: nn.Module, optimizer: OptimizerConfig, parallel: ParallelConfig, frozen: Iterable[str], trainer: Any
) -> None:
    """Raise ValueError where weights, gradients and optimizer states alone do not fit a device of the run.

    `model` may be on the meta device; parameters of `frozen` patterns have weights alone. Activations come on top:
    `unimodal plan` counts them.
    """
    if not parallel.check_memory:
        return
    ranks = trainer.world_size // parallel.replicate if isinstance(trainer.strategy, ShardedStrategy) else 1
    needed = state_bytes(model, optimizer, tuple(frozen)) / max(ranks, 1)
    device = trainer.strategy.root_device
    there = device_bytes(device) / (trainer.num_devices if device.type == "cpu" else 1)
    if needed > there:
        raise ValueError(
            f"weights, gradients and optimizer states take {needed / GIB:.1f} GiB of each device, which has "
            f"{there / GIB:.1f} GiB: share them among more devices (trainer.strategy: sharded), which `unimodal plan` "
            "works out; parallel.check_memory: false tries all the same"
        )


def state_bytes(model: nn.Module, optimizer: OptimizerConfig, frozen: tuple[str, ...] = ()) -> int:
    """Bytes of weights, gradients and states of the optimizer: two numbers for each weight, one for Muon's matrices."""
    matrices = {id(parameter) for parameter in parameters_by_role(model)["matrix"]}
    total = 0
    for name, parameter in model.named_parameters():
        size = parameter.numel() * parameter.element_size()
        if any(fnmatch(name, pattern) for pattern in frozen):
            total += size
        else:
            total += (3 if isinstance(optimizer, MuonConfig) and id(parameter) in matrices else 4) * size
    return total


def device_bytes(device: torch.device) -> int:
    """Memory of a GPU, or of the machine as far as this process may take it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else "max"
    return min(machine, int(limit)) if limit.isdigit() else machine
