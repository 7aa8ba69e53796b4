"""What a policy loss is computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Shapes: M tokens of all answers.

MAX_LOG_RATIO = 20.0
"""Beyond it a ratio is cut off: its exponential would overflow."""


class TokenRatios(NamedTuple):
    """The tokens of a batch as a loss sees them, (M,) each."""

    log_probs: Tensor
    """Of the policy that is trained, differentiable."""
    old: Tensor
    """Of the policy that sampled."""
    advantages: Tensor
    answers: Tensor
    """The number of each token's answer, from 0 on."""

    @property
    def ratios(self) -> Tensor:
        """p / p_old, differentiable."""
        return (self.log_probs - self.old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()

    def answer_means(self, values: Tensor) -> Tensor:
        """values (M,) -> the mean over its answer, for each token."""
        nothing = values.new_zeros(len(self.answers))  # there are at most as many answers, and no device is asked
        sums = nothing.index_add(0, self.answers, values)
        lengths = nothing.index_add(0, self.answers, torch.ones_like(values))
        return (sums / lengths.clamp_min(1))[self.answers]


class TokenLosses(NamedTuple):
    """(M,) each: what is minimised, and where the clipping took hold above and below."""

    losses: Tensor
    clipped_high: Tensor
    clipped_low: Tensor


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """A loss of the policy. A subclass is one file, registered by being named in a config."""

    @property
    def narrowest(self) -> float:
        """The smaller distance from 1 at which ratios are clipped; the noise of log-probabilities lies below it."""
        raise NotImplementedError

    def of(self, tokens: TokenRatios) -> TokenLosses:
        """The loss of each token."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ClippingLoss(PolicyLoss):
    """A loss that clips ratios at 1 - low and 1 + high."""

    low: float = 0.2
    high: float = 0.2

    def __post_init__(self) -> None:
        if not (0 < self.low < 1 and self.high > 0):
            raise ValueError(f"ratios are clipped at 1 - low and 1 + high, low in (0, 1) and high above 0: {self}")

    @property
    def narrowest(self) -> float:
        """See `PolicyLoss`."""
        return min(self.low, self.high)

    def clip(self, ratios: Tensor) -> Tensor:
        """ratios (M,) within the range."""
        return ratios.clamp(1 - self.low, 1 + self.high)


def clipped_where(ratios: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Which tokens the clip takes out of the gradient, above and below: (M,) bool each."""
    return (ratios > 1 + high) & (advantages > 0), (ratios < 1 - low) & (advantages < 0)
