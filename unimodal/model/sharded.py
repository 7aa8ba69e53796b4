"""Tensors of which a rank holds some rows: its part, the whole, and writing the whole into the parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def local_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What lies on this rank of each; a tensor that is not sharded is its own part."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered on every rank where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_group(tensors: Sequence[Tensor]) -> dist.ProcessGroup | None:
    """The ranks that share the rows of these tensors; None where they are not sharded."""
    sharded = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
    return sharded[0].device_mesh.get_group(-1) if sharded else None


def rows_here(tensor: Tensor) -> tuple[int, int]:
    """The rows (start, end) of a tensor that lie on this rank."""
    if not isinstance(tensor, DTensor):
        return 0, len(tensor)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0], offset[0] + shape[0]


def reshard(model: nn.Module) -> None:
    """Free what a forward pass without a backward pass leaves gathered: its parameters are shards again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def write_rows(tensor: Tensor, rows: Any, first: int = 0) -> None:
    """Copy rows, numbered from `first` on in the whole tensor, into the part that lies here.

    `rows` is a tensor, or anything whose slices are tensors, of which only what is needed is then read.
    """
    part = local_parts([tensor.detach()])[0]
    start, end = rows_here(tensor)
    begin, stop = max(start, first), min(end, first + _length(rows))
    if begin < stop:
        part[begin - start : stop - start].copy_(rows[begin - first : stop - first])


def _length(rows: Any) -> int:
    return rows.shape[0] if hasattr(rows, "shape") else rows.get_shape()[0]
