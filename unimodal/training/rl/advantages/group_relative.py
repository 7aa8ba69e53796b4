"""Group-relative advantages (GRPO)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unimodal.training.rl.advantages.base import (
    Advantage,
    deviation_of_valid,
    mean_of_valid,
    weighted_sum,
    without_equal,
)


@dataclass(frozen=True, kw_only=True)
class GroupRelative(Advantage):
    """(R - mean) / (std + eps) over the answers of a prompt (GRPO, arXiv 2402.03300, section 4.1.1)."""

    eps: float = 1e-6

    def of(self, rewards: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
        """See `Advantage`."""
        total = weighted_sum(rewards, weights)
        centred = total - mean_of_valid(total, valid)
        return without_equal(centred / (deviation_of_valid(total, valid) + self.eps), total, valid)
