"""Gradients between backward pass and optimizer: of sums made means, their norm taken once, clipped by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipelines.batch import MIN_WEIGHT
from unimodal.model.sharded import local_parts, shard_group

CLIP_EPS = 1e-6
"""As in torch.nn.utils.clip_grad_norm_."""


def gradients_of(optimizer: Any) -> list[Tensor]:
    """Those that there are, in the order of the optimizer's groups: a norm's last bit depends on the order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def to_means(gradients: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Gradients of a sum over this rank's tokens, averaged over ranks as DDP and FSDP2 do, become those of the weighted
    mean over the tokens of all ranks; their norm, which no host has to wait for.

    `weight` is the summed weight of the tokens of all ranks.
    """
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    parts = local_parts(gradients)
    scale = (ranks / weight.double().clamp_min(MIN_WEIGHT)).to(parts[0].dtype)
    torch._foreach_mul_(parts, scale)  # pyright: ignore[reportPrivateImportUsage]
    norm = torch.nn.utils.get_total_norm(parts, foreach=True if parts[0].device.type == "cuda" else None)
    group = shard_group(gradients)
    if group is None:
        return norm
    squared = norm.square()
    dist.all_reduce(squared, group=group)
    return squared.sqrt()


def clip(gradients: Sequence[Tensor], largest: float, norm: Tensor) -> None:
    """Scale gradients of this norm, in place, to the largest norm where theirs is above it."""
    parts = local_parts(gradients)
    if parts:
        scale = torch.clamp(largest / (norm + CLIP_EPS), max=1.0).to(parts[0].dtype)
        torch._foreach_mul_(parts, scale)  # pyright: ignore[reportPrivateImportUsage]
