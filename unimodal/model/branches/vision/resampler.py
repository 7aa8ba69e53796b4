"""Qwen-VL's position-aware adapter: one cross-attention from a fixed number of queries to the patches of an image.

    queries + positions ─▶ attention over keys (patches + positions) and values (patches) ─▶ norm ─▶ projection

(arXiv 2308.12966, section 2.1, and its public code). Positions of patches are those of the queries, resized bicubically
to the rows and columns of the image, which may be any.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.branches.vision.merging import Grids
from unimodal.model.config import INIT_STD, VisionConfig
from unimodal.model.linear import BoundaryLinear, init_linear
from unimodal.model.sinusoids import sincos_positions

# Shapes: I images, Q queries of each, N patches of all images, L of the largest, E width of the encoder, D model width.

HEAD_DIM = 128
"""Width of an attention head; a narrower model has one head."""
EPS = 1e-6


class Queries(nn.Module):
    """(Q, D), learnt; optimizers treat them as an embedding."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))


class Resampler(nn.Module):
    """Patches of images of any shape -> Q vectors an image."""

    positions: Tensor

    def __init__(self, config: VisionConfig, dim: int) -> None:
        super().__init__()
        self.count, self.side = config.patches.tokens, math.isqrt(config.patches.tokens)
        self.num_heads = max(1, dim // HEAD_DIM)
        self.queries = Queries(self.count, dim)
        self.kv_proj = BoundaryLinear(config.dim, dim, bias=False)
        self.query_norm, self.key_norm, self.out_norm = (nn.LayerNorm(dim, eps=EPS) for _ in range(3))
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.out_proj = BoundaryLinear(dim, dim, bias=False)
        self.register_buffer("positions", self._table(), persistent=False)

    def init_weights(self) -> None:
        """All parameters; the table of positions is computed again."""
        nn.init.trunc_normal_(self.queries.weight, std=INIT_STD)
        for norm in (self.query_norm, self.key_norm, self.out_norm):
            norm.reset_parameters()
        for linear in (self.kv_proj, self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            init_linear(linear, INIT_STD)
        init_linear(self.out_proj, self.out_proj.in_features**-0.5)
        self.positions.copy_(self._table())  # `to_empty` gives it other memory

    def forward(self, features: Tensor, grids: Grids) -> Tensor:
        """features (N, E) of images of these rows and columns, one after the other -> (I * Q, D)."""
        values = self.key_norm(self.kv_proj(features))
        keys = values + self.resized(grids).to(values.dtype)
        queries = self.query_norm(self.queries.weight) + self.positions.to(values.dtype)
        heads = (self.num_heads, -1)
        asked = self.q_proj(queries).unflatten(-1, heads).transpose(0, 1)
        parts = [values.new_zeros(0, values.shape[1])]
        lengths = [rows * columns for rows, columns in grids]
        for key, value in zip(self.k_proj(keys).split(lengths), self.v_proj(values).split(lengths), strict=True):
            given = (each.unflatten(-1, heads).transpose(0, 1) for each in (key, value))
            parts.append(F.scaled_dot_product_attention(asked, *given).transpose(0, 1).flatten(1))
        mixed = torch.cat(parts)
        if not lengths:  # without an image there is nothing, but with gradients
            mixed = mixed + 0 * (asked.sum() + self.k_proj(keys).sum() + self.v_proj(values).sum())
        return self.out_proj(self.out_norm(self.o_proj(mixed)))

    def resized(self, grids: Grids) -> Tensor:
        """(N, D): the positions of all patches."""
        table = self.positions.unflatten(0, (self.side, self.side)).permute(2, 0, 1)[None]
        found = dict.fromkeys(dict.fromkeys(grids), table)
        for grid in found:
            if grid != (self.side, self.side):
                found[grid] = F.interpolate(table, grid, mode="bicubic", align_corners=False)
        return torch.cat([self.positions[:0], *(found[grid][0].permute(1, 2, 0).flatten(0, 1) for grid in grids)])

    def _table(self) -> Tensor:
        """(Q, D)."""
        return sincos_positions(self.side, self.out_proj.out_features)
