"""Advantages without a division (Dr. GRPO)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unimodal.training.rl.advantages.base import Advantage, mean_of_valid, weighted_sum, without_equal


@dataclass(frozen=True, kw_only=True)
class MeanRemoved(Advantage):
    """R - mean over the answers of a prompt: easy and hard prompts weigh alike (Dr. GRPO, arXiv 2503.20783)."""

    def of(self, rewards: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
        """See `Advantage`."""
        total = weighted_sum(rewards, weights)
        return without_equal(total - mean_of_valid(total, valid), total, valid)
