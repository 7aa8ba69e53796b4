"""Tokens of several patches: the numbers of a token as patches, row by row through its image, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from unimodal.model.branches.base import MediaTokens

# Shapes: M tokens of all images, m patches along a side of a token, s pixels along a side of a patch, N = M * m * m.

Grids = tuple[tuple[int, int], ...]
"""Rows and columns of each image."""


def patch_grids(grids: Grids, merge: int) -> Grids:
    """Of tokens -> of patches."""
    return tuple((rows * merge, columns * merge) for rows, columns in grids)


def patch_slots(media: MediaTokens, merge: int) -> Tensor:
    """(N,) int64: where the patches of each token, its own row by row, stand among those of all images row by row."""
    device = media.row_col.device
    counts = torch.tensor([rows * columns for rows, columns in media.grids], dtype=torch.int64)
    columns = torch.tensor([columns for _, columns in media.grids], dtype=torch.int64).repeat_interleave(counts)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts).to(device) * merge**2
    width = (columns * merge).to(device)
    inside = torch.arange(merge, device=device)
    rows = media.row_col[:, 0, None, None] * merge + inside[:, None]
    across = media.row_col[:, 1, None, None] * merge + inside
    return (first[:, None, None] + rows * width[:, None, None] + across).flatten()


def split_tokens(values: Tensor, merge: int) -> Tensor:
    """(M, 3 * (m s)^2), channel by channel, -> (N, 3 * s * s), the patches of a token row by row."""
    side = round((values.shape[1] // 3) ** 0.5)
    small = side // merge
    blocks = values.unflatten(1, (3, merge, small, merge, small)).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(-1, 3 * small * small)


def in_raster_order(of_tokens: Tensor, slots: Tensor) -> Tensor:
    """(N, C) token by token -> row by row through each image."""
    return torch.zeros_like(of_tokens).index_copy(0, slots, of_tokens)
