"""Reading: pieces of contexts go through the model and leave their keys and values in rows of a cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokenizers_vq.folded_patches import as_wide
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
    tokens, positions, slots = tokens.to(device), positions.to(device), slots.to(device)
    features = model(tokens, positions, mask, cache, media=media, slots=slots)
    fill_multi_token(model, cache, features, _next_ids(pieces, tokens), positions, slots)
    return features


def fill_multi_token(
    model: UnifiedModel, cache: KVCache, features: Tensor, following: Tensor, positions: Tensor, slots: Tensor
) -> None:
    """What multi-token heads keep of tokens that were read, from the ids (R, T) that follow each.

    Depth 2 and those behind it do not know what follows the last of them, which may cost a draft.
    """
    head = model.multi_token_head
    if head is None or not head.has_blocks or len(cache.layers) <= model.config.trunk.num_layers:
        return
    context, hidden = head.cached(features, positions, slots, cache), features
    for number, depth in enumerate(head.depths):
        embedded = model.trunk.embedding(following)
        hidden, _ = depth(hidden, features, embedded, head.at_depth(context, number, cache))
        following = torch.cat([following[:, 1:], following[:, -1:]], 1)


def _next_ids(pieces: Sequence[Piece], tokens: Tensor) -> Tensor:
    """(R, T): the id after each token."""
    following = torch.cat([tokens[:, 1:], tokens[:, -1:]], 1)
    for row, piece in enumerate(pieces):
        if piece.following is not None and len(piece):
            following[row, len(piece) - 1] = piece.following
    return following


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
    values = np.concatenate(as_wide([values.reshape(-1, values.shape[-1]) for _, values in images]))
    return MediaTokens(
        torch.from_numpy(index).to(model.device),
        torch.from_numpy(values).to(model.device),
        torch.cat([grid_positions(*grid) for grid in grids]).to(model.device),
        grids,
    )


def _padded(rows: Sequence[Sequence[int]], width: int, value: int) -> Tensor:
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.int64)
