"""Figures of a pass as sums and maxima, which ranks can add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(kw_only=True)
class MonitorSums:
    """By name: a sum and the weight that makes a mean of it, and a largest value."""

    means: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    largest: dict[str, Tensor] = field(default_factory=dict)

    def add(self, other: MonitorSums) -> MonitorSums:
        """Both; their names differ."""
        return MonitorSums(means=self.means | other.means, largest=self.largest | other.largest)

    def over_ranks(self) -> Mapping[str, float]:
        """Means and largest values of all ranks, which all call it; a mean of nothing is not there."""
        parts = [number.detach().double() for pair in self.means.values() for number in pair]
        sums = torch.stack(parts) if parts else torch.zeros(0)
        largest = torch.stack([one.detach().double() for one in self.largest.values()] or [torch.zeros(()).double()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        values = sums.tolist()
        pairs = zip(self.means, values[::2], values[1::2], strict=True)
        found = {name: total / weight for name, total, weight in pairs if weight}
        return found | dict(zip(self.largest, largest.tolist(), strict=False))
