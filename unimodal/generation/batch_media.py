"""Media of a PackedBatch as the model takes them."""

from __future__ import annotations

from data_pipelines.media_batch import PackedMedia
from unimodal.model.branches.base import MediaTokens


def media_tokens(packed: PackedMedia) -> MediaTokens:
    """Clean tokens of one kind."""
    return MediaTokens(packed.index, packed.values, packed.row_col, packed.grids)
