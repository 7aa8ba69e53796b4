"""A gate that closes softly instead of a clip (SAPO)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unimodal.training.rl.losses.base import PolicyLoss, TokenLosses, TokenRatios


@dataclass(frozen=True, kw_only=True)
class SoftGate(PolicyLoss):
    """-A sigmoid(tau (r - 1)) 4 / tau for each token (SAPO, arXiv 2511.20347); at r = 1 its gradient is that of -A r.

    `tau` is for good tokens, `tau_bad` for bad ones.
    """

    tau: float = 1.0
    tau_bad: float = 1.05

    def __post_init__(self) -> None:
        if self.tau <= 0 or self.tau_bad <= 0:
            raise ValueError(f"the temperatures of a soft gate are above 0, got {self}")

    @property
    def narrowest(self) -> float:
        """See `PolicyLoss`; a gate halves the gradient about this far from 1."""
        return 1 / max(self.tau, self.tau_bad)

    def of(self, tokens: TokenRatios) -> TokenLosses:
        """See `PolicyLoss`."""
        ratios, advantages = tokens.ratios, tokens.advantages
        tau = torch.where(advantages > 0, self.tau, self.tau_bad).to(ratios.dtype)
        none = torch.zeros_like(ratios, dtype=torch.bool)
        return TokenLosses(-advantages * torch.sigmoid(tau * (ratios - 1)) * 4 / tau, none, none)
