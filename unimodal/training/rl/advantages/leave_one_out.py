"""Leave-one-out advantages (RLOO)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unimodal.training.rl.advantages.base import Advantage, mean_of_valid, weighted_sum, without_equal


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut(Advantage):
    """R minus the mean of the other answers of its prompt (RLOO, arXiv 2402.14740): an unbiased baseline."""

    def of(self, rewards: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
        """See `Advantage`."""
        total = weighted_sum(rewards, weights)
        count = valid.sum(1, keepdim=True)
        centred = (total - mean_of_valid(total, valid)) * count / (count - 1).clamp_min(1)
        return without_equal(centred, total, valid)
