"""Media of a PackedBatch as the model takes them."""

from __future__ import annotations

from torch import Tensor

from data_pipelines.batch import PackedBatch
from unimodal.model.branches.base import MediaTokens
from unimodal.model.model import LATENTS, PATCHES


def media_of(batch: PackedBatch) -> dict[str, MediaTokens]:
    """By the name of the branch that takes them; values as the batch holds them, latents clean.

    Raises ValueError for an image of which tokens are missing.
    """
    found: dict[str, MediaTokens] = {}
    if batch.latents is not None:
        found[LATENTS] = _tokens(batch.latents.values, batch.latents.cells)
    if batch.patches is not None:
        found[PATCHES] = _tokens(batch.patches.values, batch.patches.cells)
    return found


def _tokens(values: Tensor, cells: Tensor) -> MediaTokens:
    standing = cells[..., 0] >= 0
    own = cells[standing]
    starts = (own == 0).all(1).nonzero().squeeze(1).tolist()
    ends = [*starts[1:], len(own)] if starts else []
    grids = tuple((int(own[end - 1, 0]) + 1, int(own[end - 1, 1]) + 1) for end in ends)
    for (rows, columns), start, end in zip(grids, starts, ends, strict=True):
        if rows * columns != end - start:
            raise ValueError(
                f"an image of {rows}x{columns} tokens stands in the batch with {end - start}: it is never cut"
            )
    return MediaTokens(standing.flatten().nonzero().squeeze(1), values[standing], own, grids)
