"""The feed-forward part of a mixture of experts, as DeepSeek-V3 and Moonlight have it (arXiv 2412.19437, 2.1.2).

x ─▶ router ─▶ top-k of scores + bias ─▶ sum over them of gate * expert(x)  +  shared experts(x)
"""

from __future__ import annotations

from torch import Tensor, nn

from unimodal.model.config import TransformerConfig
from unimodal.model.feedforward.dense import FeedForward
from unimodal.model.feedforward.experts import Experts
from unimodal.model.feedforward.router import Router, Routing

# Shapes: N tokens, D model width.


class MixtureOfExperts(nn.Module):
    """Routed experts, and shared ones as one dense part of their joint width."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        moe = config.moe
        assert moe is not None
        self.router = Router(config.dim, moe)
        self.experts = Experts(moe.experts, config.dim, moe.hidden_dim, config.residual_std)
        self.shared = FeedForward(config, moe.shared * moe.hidden_dim) if moe.shared else None
        self.routing: Routing | None = None
        self.counts: Tensor | None = None

    def init_weights(self) -> None:
        """All parameters."""
        self.router.init_weights()
        self.experts.init_weights()
        if self.shared is not None:
            self.shared.init_weights()

    def forward(self, x: Tensor, kinds: Tensor | None = None) -> Tensor:
        """x (..., D) and the modalities (...) of its tokens -> (..., D); what was decided waits for `take`."""
        flat = x.flatten(0, -2)
        routing = self.router(flat, None if kinds is None else kinds.flatten())
        mixed = self.experts(flat, routing.selected, routing.gates).view_as(x)
        self.routing = routing
        return mixed if self.shared is None else mixed + self.shared(x)

    def take(self) -> Routing:
        """What the last forward pass decided, once. Recomputed activations leave another one, which nobody takes."""
        routing, self.routing = self.routing, None
        assert routing is not None, "no forward pass since the last time"
        return routing
