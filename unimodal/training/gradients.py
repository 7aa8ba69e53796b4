"""Gradients between backward pass and optimizer: of sums made means, their norm taken once, clipped by it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipelines.batch import MIN_WEIGHT


def gradients_of(optimizer: Any) -> list[Tensor]:
    """Those that there are, in the order of the optimizer's groups: a norm's last bit depends on the order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def to_means(gradients: list[Tensor], weight: Tensor) -> Tensor:
    """Gradients of a sum over this rank's tokens, averaged over ranks as DDP does, become those of the weighted mean
    over the tokens of all ranks; their norm, which no host has to wait for.

    `weight` is the summed weight of this rank's tokens.
    """
    summed, ranks = weight.clone(), 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(summed)
        ranks = dist.get_world_size()
    scale = (ranks / summed.double().clamp_min(MIN_WEIGHT)).to(gradients[0].dtype)
    torch._foreach_mul_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage]
    return torch.nn.utils.get_total_norm(gradients, foreach=True if gradients[0].device.type == "cuda" else None)
