"""The ratio of whole answers (GSPO)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unimodal.training.rl.losses.base import (
    MAX_LOG_RATIO,
    ClippingLoss,
    TokenLosses,
    TokenRatios,
    clipped_where,
)


@dataclass(frozen=True, kw_only=True)
class SequenceRatio(ClippingLoss):
    """As the clipped ratio, of s = exp(mean over the answer of log r) (GSPO, arXiv 2507.18071, section 4.2).

    The mean keeps the length out of it: a ratio of 1.1 a token would be 13,780 over an image of 100 codes. The gradient
    reaches each token through its own log-probability (GSPO-token, section 4.3).
    """

    low: float = 3e-4
    high: float = 4e-4

    def of(self, tokens: TokenRatios) -> TokenLosses:
        """See `PolicyLoss`."""
        means = tokens.answer_means((tokens.log_probs - tokens.old).detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        ratios = (tokens.log_probs - tokens.log_probs.detach() + means).exp()
        advantages = tokens.advantages
        losses = torch.maximum(-advantages * ratios, -advantages * self.clip(ratios))
        return TokenLosses(losses, *clipped_where(ratios.detach(), advantages, self.low, self.high))
