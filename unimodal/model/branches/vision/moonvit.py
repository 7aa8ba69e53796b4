"""MoonViT, Kimi-VL's eyes in native resolution (arXiv 2504.07491, section 2.1): SigLIP's transformer with 2-D RoPE.

    patch ─▶ embedding + position ─▶ [ norm ─▶ attention (2-D RoPE) ─▶ +  norm ─▶ MLP ─▶ + ] x L ─▶ norm

The table of positions is resized bicubically to each image. The column of a patch turns the even pairs of neighbouring
channels of queries and keys, its row the odd ones, as in the public code of Kimi-VL (whose comment says the opposite).
"""

from __future__ import annotations

import torch
from torch import Tensor

from unimodal.model.branches.base import grid_positions
from unimodal.model.branches.vision.merging import Grids
from unimodal.model.branches.vision.siglip import PairRotation, SiglipEncoder

# Shapes: N patches of all images, W width of a head.

THETA = 10_000.0
"""Base of the frequencies."""


class MoonViTEncoder(SiglipEncoder):
    """Patches of images of any shape -> one feature vector a patch."""

    resizing = "bicubic"

    def rotation(self, grids: Grids, like: Tensor) -> PairRotation:
        """Cosines and sines of each patch."""
        row_col = torch.cat([grid_positions(0, 0), *(grid_positions(*grid) for grid in grids)]).to(like.device)
        return pair_rotation(row_col, self.config.dim // self.config.num_heads, like.dtype)


def pair_rotation(row_col: Tensor, head_dim: int, dtype: torch.dtype) -> PairRotation:
    """row_col (N, 2), row and column -> cosines and sines (N, 1, W / 2), computed in float32 at least."""
    precise = torch.promote_types(dtype, torch.float32)
    frequencies = THETA ** -(torch.arange(0, head_dim, 4, device=row_col.device, dtype=precise) / head_dim)
    rows, columns = row_col[:, 0, None] * frequencies, row_col[:, 1, None] * frequencies
    angles = torch.stack([columns, rows], dim=-1).flatten(1)
    return angles.cos().to(dtype)[:, None], angles.sin().to(dtype)[:, None]
