"""The feed-forward part: SwiGLU (arXiv 2002.05202)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.config import INIT_STD, TransformerConfig
from unimodal.model.linear import init_linear


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TransformerConfig, hidden_dim: int | None = None) -> None:
        """`hidden_dim` is the trunk's by default."""
        super().__init__()
        hidden_dim = hidden_dim or config.hidden_dim
        self.residual_std = config.residual_std
        self.gate_proj = nn.Linear(config.dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, config.dim, bias=False)

    def init_weights(self) -> None:
        """The projection back into the residual stream starts smaller the deeper the model is."""
        init_linear(self.gate_proj, INIT_STD)
        init_linear(self.up_proj, INIT_STD)
        init_linear(self.down_proj, self.residual_std)

    def forward(self, x: Tensor, kinds: Tensor | None = None) -> Tensor:
        """(..., D) -> (..., D); all tokens alike, whatever their modality."""
        del kinds
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
