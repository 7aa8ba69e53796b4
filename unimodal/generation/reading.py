"""Reading: pieces of contexts go through the model and leave their keys and values in rows of a cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unimodal.generation.context import Piece
from unimodal.model.branches.base import MediaBatch, MediaTokens, grid_positions
from unimodal.model.cache import KVCache
from unimodal.model.model import UnifiedModel

# Shapes: R rows, T tokens of the longest piece, D model width.


def read(model: UnifiedModel, cache: KVCache, pieces: Sequence[Piece], pad: int) -> Tensor:
    """Each piece into a row of the cache, padded on the right -> features (R, T, D)."""
    width = max(map(len, pieces))
    tokens = _padded([piece.tokens for piece in pieces], width, pad)
    positions = _padded([piece.positions for piece in pieces], width, 0)
    firsts = torch.tensor([piece.slot for piece in pieces])[:, None]
    slots = (firsts + torch.arange(width)).clamp_max(cache.slots - 1)
    cache.reserve(min(max(piece.slot for piece in pieces) + width, cache.slots))
    device, mask = model.device, None
    media = piece_media(pieces, width, model)
    if media:
        limits = torch.maximum(_padded([piece.limits for piece in pieces], width, 0), slots)
        mask = (torch.arange(cache.used) <= limits[..., None]).unsqueeze(1).to(device)
    return model(tokens.to(device), positions.to(device), mask, cache, media=media, slots=slots.to(device))


def piece_media(pieces: Sequence[Piece], width: int, model: UnifiedModel) -> MediaBatch:
    """The media of pieces, rows of `width` tokens, for the branches of a model."""
    found: dict[str, list[tuple[int, np.ndarray]]] = {}
    for row, piece in enumerate(pieces):
        for start, media in piece.media:
            found.setdefault(media.name, []).append((row * width + start, media.values))
    return {name: _tokens(images, model) for name, images in found.items()}


def _tokens(images: Sequence[tuple[int, np.ndarray]], model: UnifiedModel) -> MediaTokens:
    grids = tuple((values.shape[0], values.shape[1]) for _, values in images)
    index = np.concatenate(
        [np.arange(start, start + rows * columns) for (start, _), (rows, columns) in zip(images, grids, strict=True)]
    )
    values = np.concatenate([values.reshape(-1, values.shape[-1]) for _, values in images])
    return MediaTokens(
        torch.from_numpy(index).to(model.device),
        torch.from_numpy(values).to(model.device),
        torch.cat([grid_positions(*grid) for grid in grids]).to(model.device),
        grids,
    )


def _padded(rows: Sequence[Sequence[int]], width: int, value: int) -> Tensor:
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.int64)
