"""Pictures that a run leaves: many in one, each whole."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from unimodal.training.callbacks.pictures import picture_grid


@pytest.mark.parametrize("sides", [[(4, 6), (4, 6)], [(4, 6), (9, 3)], [(2, 2), (3, 8)]])
def test_pictures_of_any_sizes_stand_side_by_side_whole(sides: list[tuple[int, int]]) -> None:
    first, second = (Image.new("RGB", pair, paint) for pair, paint in zip(sides, ("red", "blue"), strict=True))
    grid = np.asarray(picture_grid([[first, second], [second]]))
    assert (grid == (255, 0, 0)).all(-1).sum() == first.width * first.height
    assert (grid == (0, 0, 255)).all(-1).sum() == 2 * second.width * second.height
