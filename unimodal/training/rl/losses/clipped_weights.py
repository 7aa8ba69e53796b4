"""Clipped importance weights (CISPO): no token falls out of the gradient."""

from __future__ import annotations

from dataclasses import dataclass

from unimodal.training.rl.losses.base import ClippingLoss, TokenLosses, TokenRatios


@dataclass(frozen=True, kw_only=True)
class ClippedWeights(ClippingLoss):
    """-sg(clip(r, 1 - low, 1 + high)) A log p for each token (CISPO, arXiv 2506.13585, section 3.1).

    Clipped on both sides, as verl does; TRL clips above alone.
    """

    low: float = 0.2
    high: float = 0.28

    def of(self, tokens: TokenRatios) -> TokenLosses:
        """See `PolicyLoss`."""
        ratios = tokens.ratios.detach()
        losses = -self.clip(ratios) * tokens.advantages * tokens.log_probs
        return TokenLosses(losses, ratios > 1 + self.high, ratios < 1 - self.low)
