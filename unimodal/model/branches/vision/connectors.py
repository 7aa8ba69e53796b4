"""Connectors: features of a vision encoder become embeddings of the trunk."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.branches.base import MediaTokens, positions_of
from unimodal.model.config import INIT_STD, VisionConfig
from unimodal.model.linear import BoundaryLinear, init_linear
from unimodal.model.sinusoids import sincos_positions

# Shapes: M tokens of all images, m patches along a side of a token, E width of the encoder, D model width, I images, Q
# tokens of each, N patches of the largest.


class MLPConnector(nn.Module):
    """BAGEL's: two layers, then the 2-D position embedding of each patch (arXiv 2505.14683)."""

    positions: Tensor

    def __init__(self, config: VisionConfig, dim: int) -> None:
        super().__init__()
        self.max_side, self.pos_embed_period = config.patches.max_side, config.pos_embed_period
        self.in_proj = BoundaryLinear(config.merge**2 * config.dim, dim)
        self.out_proj = BoundaryLinear(dim, dim)
        self.register_buffer("positions", self._table(), persistent=False)

    def init_weights(self) -> None:
        """Normal weights that keep the size of features, zero biases; the table of positions is computed again.

        Numbers of the positions have a root mean square of 0.7. Weights of INIT_STD would make features a twentieth of
        that, and a ViT from random weights would not be learnt (docs/studies/eyes.md).
        """
        for linear in (self.in_proj, self.out_proj):
            init_linear(linear, linear.in_features**-0.5)
        self.positions.copy_(self._table())  # `to_empty` gives it other memory

    def forward(self, features: Tensor, media: MediaTokens) -> Tensor:
        """features (M, m * m * E) -> (M, D). Raises ValueError for an image longer than the table of positions."""
        x = self.out_proj(F.gelu(self.in_proj(features), approximate="tanh"))
        return x + self.positions[positions_of(media, self.max_side)].to(x.dtype)

    def _table(self) -> Tensor:
        """(max_side * max_side, D)."""
        return sincos_positions(self.max_side, self.out_proj.out_features, self.pos_embed_period)


class PixelShuffleConnector(nn.Module):
    """Kimi-VL's: a norm of each patch, the patches of a token side by side, then two layers (arXiv 2504.07491, 2.1)."""

    def __init__(self, config: VisionConfig, dim: int) -> None:
        super().__init__()
        joined = config.merge**2 * config.dim
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.in_proj = BoundaryLinear(joined, joined)
        self.out_proj = BoundaryLinear(joined, dim)

    def init_weights(self) -> None:
        """Normal weights, zero biases."""
        self.norm.reset_parameters()
        init_linear(self.in_proj, INIT_STD)
        init_linear(self.out_proj, INIT_STD)

    def forward(self, features: Tensor, media: MediaTokens) -> Tensor:
        """features (M, m * m * E) -> (M, D)."""
        del media
        x = self.norm(features.unflatten(1, (-1, self.norm.normalized_shape[0]))).flatten(1)
        return self.out_proj(F.gelu(self.in_proj(x)))
