"""Linear layers: how they start, and which of them lead into or out of the trunk."""

from __future__ import annotations

from torch import nn


class BoundaryLinear(nn.Linear):
    """A projection into or out of the residual stream's vocabulary, latents or patches.

    Optimizers treat it as an embedding: with Muon it stays with AdamW (Moonlight, arXiv 2502.16982, section 2).
    """


def init_linear(linear: nn.Linear, std: float) -> None:
    """Normal weights, and a bias of zero where there is one."""
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
