"""What a rollout and its updates logged, summed over batches and ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Sums:
    """Means by name: of what is added, by weight, over mini-batches and ranks; and the largest of some."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}
        self.largest: dict[str, float] = {}

    def add(self, name: str, values: Tensor, chosen: Tensor | None = None) -> None:
        """Values (M,), those of `chosen` (M,) bool alone."""
        values = values.detach().double()
        values = values if chosen is None else values[chosen]
        self.put(name, float(values.sum()), float(values.numel()))

    def put(self, name: str, total: float, weight: float = 1.0) -> None:
        """A sum of values of this weight."""
        before = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (before[0] + total, before[1] + weight)

    def peak(self, name: str, value: float) -> None:
        """The largest is kept."""
        self.largest[name] = max(self.largest.get(name, value), value)

    def reduced(self, device: torch.device) -> dict[str, float]:
        """The means of all ranks, which have the same names; those that nothing was added to are skipped."""
        names, peaks = sorted(self.sums), sorted(self.largest)
        table = torch.tensor([self.sums[name] for name in names], dtype=torch.float64, device=device)
        highest = torch.tensor([self.largest[name] for name in peaks], dtype=torch.float64, device=device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(table)
            dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        means = {name: total / weight for name, (total, weight) in zip(names, table.tolist(), strict=True) if weight}
        return means | dict(zip(peaks, highest.tolist(), strict=True))


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
