"""Advantages of each reward apart (GDPO)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.training.rl.advantages.base import (
    Advantage,
    deviation_of_valid,
    mean_of_valid,
    weighted_sum,
    without_equal,
)


@dataclass(frozen=True, kw_only=True)
class PerReward(Advantage):
    """Each reward is normalised within its group, weighed and summed; then the sum is normalised over the batch.

    So a reward of large spread does not drown the others (GDPO, arXiv 2601.05242).
    """

    eps: float = 1e-6

    def of(self, rewards: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
        """See `Advantage`."""
        parts = []
        for reward in rewards.unbind(-1):
            centred = reward - mean_of_valid(reward, valid)
            parts.append(without_equal(centred / (deviation_of_valid(reward, valid) + self.eps), reward, valid))
        total = weighted_sum(torch.stack(parts, dim=-1), weights)
        counts = valid & (total != 0).any(1, keepdim=True)
        flat, counted = total.reshape(1, -1), counts.reshape(1, -1)
        whitened = (flat - mean_of_valid(flat, counted)) / (deviation_of_valid(flat, counted) + self.eps)
        return torch.where(counts, whitened.reshape(total.shape), torch.zeros_like(total))
