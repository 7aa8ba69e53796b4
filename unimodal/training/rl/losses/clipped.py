"""The clipped ratio of PPO, with DAPO's higher upper clip and the dual clip."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unimodal.training.rl.losses.base import ClippingLoss, TokenLosses, TokenRatios, clipped_where


@dataclass(frozen=True, kw_only=True)
class ClippedRatio(ClippingLoss):
    """max(-A r, -A clip(r, 1 - low, 1 + high)) for each token (PPO, arXiv 1707.06347; DAPO, arXiv 2503.14476: 0.28).

    `dual` bounds the loss of a bad token by -A dual (arXiv 1912.09729); None leaves it unbounded.
    """

    dual: float | None = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dual is not None and self.dual <= 1 + self.high:
            raise ValueError(f"the dual clip lies above 1 + high, got {self.dual}")

    def of(self, tokens: TokenRatios) -> TokenLosses:
        """See `PolicyLoss`."""
        ratios, advantages = tokens.ratios, tokens.advantages
        losses = torch.maximum(-advantages * ratios, -advantages * self.clip(ratios))
        if self.dual is not None:
            bounded = torch.minimum(losses, -advantages * self.dual)
            losses = torch.where(advantages < 0, bounded, losses)
        return TokenLosses(losses, *clipped_where(ratios.detach(), advantages, self.low, self.high))
