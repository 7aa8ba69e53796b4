"""Clipped importance weights (CISPO): no token falls out of the gradient."""

from __future__ import annotations

from dataclasses import dataclass

from unimodal.training.rl.losses.base import PolicyLoss, TokenLosses, TokenRatios, check_clip


@dataclass(frozen=True, kw_only=True)
class ClippedWeights(PolicyLoss):
    """-sg(clip(r, 1 - low, 1 + high)) A log p for each token (CISPO, arXiv 2506.13585, section 3.1).

    Clipped on both sides, as verl does; TRL clips above alone.
    """

    low: float = 0.2
    high: float = 0.28

    def __post_init__(self) -> None:
        check_clip(self.low, self.high)

    @property
    def narrowest(self) -> float:
        """See `PolicyLoss`."""
        return min(self.low, self.high)

    def of(self, tokens: TokenRatios) -> TokenLosses:
        """See `PolicyLoss`."""
        ratios = tokens.ratios.detach()
        losses = -ratios.clamp(1 - self.low, 1 + self.high) * tokens.advantages * tokens.log_probs
        return TokenLosses(losses, ratios > 1 + self.high, ratios < 1 - self.low)
