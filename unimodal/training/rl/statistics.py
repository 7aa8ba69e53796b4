"""What a rollout and its updates logged, summed over batches and ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Sums:
    """Means by name, of what is added, by weight, over mini-batches and ranks. All ranks add the same names.

    What is added stays on its device until `reduced`.
    """

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, name: str, values: Tensor, chosen: Tensor | None = None) -> None:
        """Values (...), those of `chosen` bool of the same shape alone."""
        values = values.detach().double()
        kept = torch.ones_like(values) if chosen is None else chosen.double()
        self._put(name, torch.where(kept > 0, values, 0.0).sum(), kept.sum())

    def put(self, name: str, total: float, weight: float = 1.0) -> None:
        """A sum of values of this weight."""
        self._put(name, *(torch.tensor(number, dtype=torch.float64) for number in (total, weight)))

    def _put(self, name: str, total: Tensor, weight: Tensor) -> None:
        if name in self.sums:
            total, weight = self.sums[name][0] + total, self.sums[name][1] + weight
        self.sums[name] = (total, weight)

    def reduced(self, device: torch.device) -> dict[str, float]:
        """The means of all ranks; those that nothing was added to are skipped."""
        names = sorted(self.sums)
        table = torch.stack([number.to(device) for name in names for number in self.sums[name]])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(table)
        pairs = zip(names, table.view(-1, 2).tolist(), strict=True)
        return {name: total / weight for name, (total, weight) in pairs if weight}


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """The sums of all ranks, in float64."""
    table = torch.tensor(values, dtype=torch.float64, device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(table)
    return table.tolist()


def largest_of_ranks(value: int, device: torch.device) -> int:
    """The largest number of all ranks."""
    table = torch.tensor(value, device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(table, op=dist.ReduceOp.MAX)
    return int(table)


def gathered(tensors: tuple[Tensor, ...]) -> tuple[list[tuple[Tensor, ...]], int]:
    """The same tensors of all ranks, by rank, on the CPU, and the number of this rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return [tensors], 0
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, tuple(tensor.cpu() for tensor in tensors))
    return found, dist.get_rank()
