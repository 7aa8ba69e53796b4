"""The contract of a branch: a modality that is not written as ids enters the sequence as embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

# Shapes: B batch, T tokens, M media tokens of all images of a batch, C numbers per token, D model width, W head width.

Expert = Literal["understanding", "generation"]


class MediaTokens(NamedTuple):
    """All images of one kind in a batch, one after the other in the order of the batch's tokens."""

    index: Tensor
    """(M,) int64 into the flattened (B * T) tokens, sorted."""
    values: Tensor
    """(M, C)."""
    row_col: Tensor
    """(M, 2) int64: row and column in the image's grid."""
    grids: tuple[tuple[int, int], ...]
    """Rows and columns of each image."""
    times: Tensor | None = None
    """(M,) in [0, 1], where 1 is noise; None is clean."""


MediaBatch = Mapping[str, MediaTokens]
"""By the name of the branch that takes them."""

NO_MEDIA: MediaBatch = MappingProxyType({})


class Inserted(NamedTuple):
    """Embeddings that replace those of token ids."""

    index: Tensor
    """(M,) int64 into the flattened (B * T) tokens."""
    embeddings: Tensor
    """(M, D)."""
    angles: Tensor | None = None
    """(M, W / 2), added to the rotary angles."""


class Branch(nn.Module):
    """Media into the sequence. Registered in `UnifiedModel.branches` under the name of its media."""

    expert: ClassVar[Expert]
    """Which weights of a mixture its tokens take."""

    def init_weights(self) -> None:
        """All parameters of the branch."""
        raise NotImplementedError

    def forward(self, media: MediaTokens) -> Inserted:
        """What stands in the sequence for each token. Raises ValueError for an image larger than the branch takes."""
        raise NotImplementedError

    def empty(self, like: Tensor) -> MediaTokens:
        """Media without images, on the device of `like`: every weight of the branch then has a gradient of 0."""
        raise NotImplementedError


def no_tokens(width: int, like: Tensor) -> MediaTokens:
    """Media without images, of `width` numbers per token in the type of `like`."""
    index = like.new_zeros(0).long()
    return MediaTokens(index, like.new_zeros(0, width), index.new_zeros(0, 2), (), like.new_zeros(0))


def positions_of(media: MediaTokens, grid_size: int) -> Tensor:
    """(M,) int64: row * grid_size + column, the rows of a table of positions.

    The table's side is the stride, so a model must keep the side it was trained with. Raises ValueError for an image
    that is longer than the table.
    """
    max_side = max(map(max, media.grids), default=0)
    if max_side > grid_size:
        raise ValueError(f"an image of {max_side} tokens along a side does not fit this model's {grid_size} positions")
    return media.row_col[:, 0] * grid_size + media.row_col[:, 1]


def grid_positions(rows: int, columns: int) -> Tensor:
    """(rows * columns, 2) int64: row and column of every token of an image, row by row."""
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).reshape(-1, 2)
