"""What an advantage is computed from, and what every kind of it keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Shapes: P prompts, G answers of each, K rewards.


@dataclass(frozen=True, kw_only=True)
class Advantage:
    """Rewards of groups -> one number for each answer. A subclass is one file, registered by being named in a config.

    Answers whose reward could not be had are not counted and have the advantage 0.
    """

    @property
    def smallest_group(self) -> int:
        """Answers of a prompt that it takes at least."""
        return 2

    def check_group(self, size: int) -> None:
        """Raise ValueError for too few answers of a prompt."""
        if size < self.smallest_group:
            raise ValueError(
                f"a group of {size} leaves nothing to compare an answer with: its advantage would be its reward; set "
                f"rollouts.group to {self.smallest_group} at least"
            )

    def of(self, rewards: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
        """rewards (P, G, K), weights (P, K) of each prompt's rewards, valid (P, G) bool -> (P, G)."""
        raise NotImplementedError


def weighted_sum(rewards: Tensor, weights: Tensor) -> Tensor:
    """rewards (P, G, K), weights (P, K) -> (P, G)."""
    return (rewards * weights[:, None]).sum(-1)


def mean_of_valid(values: Tensor, valid: Tensor) -> Tensor:
    """values, valid (P, G) -> the mean over the valid answers (P, 1); 0 where there is none."""
    return (values * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp_min(1)


def deviation_of_valid(values: Tensor, valid: Tensor) -> Tensor:
    """values, valid (P, G) -> the standard deviation (P, 1) with Bessel's correction; 0 for fewer than two answers."""
    count = valid.sum(1, keepdim=True)
    squares = ((values - mean_of_valid(values, valid)).square() * valid).sum(1, keepdim=True)
    return (squares / (count - 1).clamp_min(1)).sqrt() * (count > 1)


def is_equal(values: Tensor, valid: Tensor) -> Tensor:
    """values, valid (P, G) -> bool (P,): whether all valid answers of a group have the same reward."""
    high = values.masked_fill(~valid, float("-inf")).amax(1)
    low = values.masked_fill(~valid, float("inf")).amin(1)
    return ~(high > low)


def without_equal(advantages: Tensor, values: Tensor, valid: Tensor) -> Tensor:
    """Advantages (P, G) that are exactly 0 for answers that do not count and in groups of equal rewards."""
    counts = valid & ~is_equal(values, valid)[:, None]
    return torch.where(counts, advantages, torch.zeros_like(advantages))
