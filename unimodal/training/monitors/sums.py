"""Figures of a pass as sums and maxima, which ranks can add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(kw_only=True)
class MonitorSums:
    """By name: a sum and the weight that makes a mean of it, and a largest value. All ranks have the same names,
    and all numbers lie on the device of the model."""

    means: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    largest: dict[str, Tensor] = field(default_factory=dict)

    def add(self, other: MonitorSums) -> MonitorSums:
        """Both; their names differ."""
        return MonitorSums(means=self.means | other.means, largest=self.largest | other.largest)

    def over_ranks(self) -> Mapping[str, float]:
        """Means and largest values of all ranks, which all call it; a mean of nothing is not there."""
        values = _over_ranks([number for pair in self.means.values() for number in pair], dist.ReduceOp.SUM)
        pairs = zip(self.means, values[::2], values[1::2], strict=True)
        found = {name: total / weight for name, total, weight in pairs if weight}
        largest = _over_ranks(list(self.largest.values()), dist.ReduceOp.MAX)
        return found | dict(zip(self.largest, largest, strict=True))


def _over_ranks(numbers: Sequence[Tensor], operation: dist.ReduceOp.RedOpType) -> list[float]:
    """Numbers, each reduced over all ranks, which have as many of them."""
    if not numbers:
        return []
    stacked = torch.stack([one.detach().double() for one in numbers])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(stacked, op=operation)
    return stacked.tolist()
