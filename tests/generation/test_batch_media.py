"""Media of a batch: where each token stands, in the grid of its image, and no image in pieces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipelines.batch import PackedBatch, PackedLatents, PackedPatches, collate
from data_pipelines.outline import Outline, Run
from tests.oracles.tiny import tiny_space
from unimodal.generation.batch_media import media_of
from unimodal.model.branches.base import grid_positions
from unimodal.model.model import LATENTS, PATCHES

SPACE = tiny_space()
LENGTH = 12


def plain_batch() -> PackedBatch:
    return collate([[Outline((Run(np.arange(9), 1.0),), ()).build()] for _ in range(2)], LENGTH, SPACE)


def cells_of(*places: tuple[int, int, int]) -> torch.Tensor:
    """(2, LENGTH, 2) of images (first token in the flattened batch, rows, columns)."""
    cells = torch.full((2 * LENGTH, 2), -1)
    for start, rows, columns in places:
        cells[start : start + rows * columns] = grid_positions(rows, columns)
    return cells.unflatten(0, (2, LENGTH))


def test_a_batch_without_copies_has_no_media() -> None:
    assert media_of(plain_batch()) == {}


def test_media_stand_where_the_batch_has_them_image_after_image() -> None:
    """Two images directly one after the other, and one of a single token in the second row."""
    cells = cells_of((1, 2, 2), (5, 1, 3), (LENGTH + 4, 1, 1))
    values = torch.randn(2, LENGTH, 5)
    latents = PackedLatents(weights=torch.zeros(2, LENGTH), values=values, cells=cells)
    patches = PackedPatches(values=values.to(torch.uint8), cells=cells_of((0, 3, 2)))
    media = media_of(replace(plain_batch(), latents=latents, patches=patches))
    assert list(media) == [LATENTS, PATCHES]
    found = media[LATENTS]
    assert found.index.tolist() == [1, 2, 3, 4, 5, 6, 7, LENGTH + 4] and found.times is None
    assert found.grids == ((2, 2), (1, 3), (1, 1))
    assert found.row_col.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 0], [0, 1], [0, 2], [0, 0]]
    assert torch.equal(found.values, values.flatten(0, 1)[found.index])
    assert media[PATCHES].grids == ((3, 2),) and media[PATCHES].values.dtype == torch.uint8


def test_an_image_of_which_tokens_are_missing_is_refused() -> None:
    cells = cells_of((3, 2, 2))
    cells[0, 5] = -1
    patches = PackedPatches(values=torch.zeros(2, LENGTH, 12, dtype=torch.uint8), cells=cells)
    with pytest.raises(ValueError, match="an image of 2x2 tokens stands in the batch with 3: it is never cut"):
        media_of(replace(plain_batch(), patches=patches))
