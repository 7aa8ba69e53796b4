"""PackedMedia: the media of a batch, one image after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_pipelines.outline import Rendered
from tokenizers_vq.folded_patches import as_wide

# Shapes: B rows, T tokens of a row, M tokens of one kind of media in all rows, C numbers of such a token.


@dataclass(kw_only=True, eq=False)
class PackedMedia:
    """The tokens of one kind of media, in the order of the tokens.

    `index` (M,) int64 points into the flattened (B * T) tokens. `values` (M, C) are float32 latents or uint8 patches.
    `row_col` (M, 2) is the place of a token in its image, and `grids` are the rows and columns of each image. `spans`
    (M,) is the number that the batch's `spans` have there, below 0 for noised tokens. `weights` (M,) are above 0 for
    noised tokens alone: over all batches and ranks of an optimizer step they sum to what its `loss_weights` do, so that
    both losses are means over the step.
    """

    index: Tensor
    values: Tensor
    row_col: Tensor
    spans: Tensor
    weights: Tensor
    grids: tuple[tuple[int, int], ...]

    @cached_property
    def spans_per_row(self) -> int:
        """One more than the largest number of a span in a row; found out once, where it needs no device."""
        return int(self.spans.abs().max()) + 1

    def map(self, function: Callable[[Tensor], Tensor]) -> PackedMedia:
        """Every tensor through a function that changes no number, such as a copy to a device."""
        mapped = self._map(function)
        mapped.__dict__["spans_per_row"] = self.spans_per_row
        return mapped

    def _map(self, function: Callable[[Tensor], Tensor]) -> PackedMedia:
        return PackedMedia(
            index=function(self.index),
            values=function(self.values),
            row_col=function(self.row_col),
            spans=function(self.spans),
            weights=function(self.weights),
            grids=self.grids,
        )

    def between(self, start: int, stop: int) -> PackedMedia:
        """Those of the flattened tokens `start` to `stop`, counted from `start`; an image is never cut."""
        first, end = torch.searchsorted(self.index.cpu(), torch.tensor([start, stop])).tolist()
        ends = np.cumsum([rows * columns for rows, columns in self.grids])
        grids = tuple(grid for grid, last in zip(self.grids, ends, strict=True) if first < last <= end)
        part = self._map(lambda tensor: tensor[first:end])
        return PackedMedia(
            index=part.index - start,
            values=part.values,
            row_col=part.row_col,
            spans=part.spans,
            weights=part.weights,
            grids=grids,
        )


class Placed(NamedTuple):
    """The media of one image of a batch, and the index of their first token among the flattened ones."""

    start: int
    values: np.ndarray


BATCH_DTYPES = {np.dtype(np.float16): np.dtype(np.float32)}
"""Stored type -> that of a batch; others stay."""


def pack_media(
    rows: Sequence[Sequence[Rendered]], spans: np.ndarray, weigh: Callable[[int], float]
) -> dict[str, PackedMedia]:
    """The media of rows of sequences by name, spans (B, T) being those of the batch.

    weigh: the number of noised tokens of the batch -> the weight of each.
    """
    placed: dict[str, list[Placed]] = {}
    for number, row in enumerate(rows):
        start = number * spans.shape[1]
        for sequence in row:
            for first, media in sequence.media:
                placed.setdefault(media.name, []).append(Placed(start + first, media.values))
            start += len(sequence)
    flat = spans.reshape(-1)
    indices = {name: np.concatenate([_tokens(one) for one in images]) for name, images in placed.items()}
    weight = weigh(sum(int((flat[index] < 0).sum()) for index in indices.values()))
    return {name: _packed(images, indices[name], flat, weight) for name, images in placed.items()}


def _tokens(image: Placed) -> np.ndarray:
    rows, columns = image.values.shape[:2]
    return np.arange(image.start, image.start + rows * columns)


def _packed(images: Sequence[Placed], index: np.ndarray, spans: np.ndarray, weight: float) -> PackedMedia:
    grids = tuple((image.values.shape[0], image.values.shape[1]) for image in images)
    flat = [np.asarray(image.values).reshape(-1, image.values.shape[-1]) for image in images]
    values = np.concatenate(as_wide(flat))
    token_spans = spans[index]
    return PackedMedia(
        index=torch.from_numpy(index),
        values=torch.from_numpy(values.astype(BATCH_DTYPES.get(values.dtype, values.dtype))),
        row_col=torch.from_numpy(np.concatenate([np.argwhere(np.ones(grid)) for grid in grids])),
        spans=torch.from_numpy(token_spans),
        weights=torch.from_numpy((token_spans < 0).astype(np.float32) * np.float32(weight)),
        grids=grids,
    )
