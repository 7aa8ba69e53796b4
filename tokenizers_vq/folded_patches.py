"""The patches of an image shared by a fixed number of tokens, which a resampler reads.

So a token of the sequence carries its numbers, as it does where it is a patch, and packing, masks and caches know of no
other case. The rows and columns of the image stand before its patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokenizers_vq.media import MAX_BYTE

# Shapes: R rows and K columns of patches of an image, P numbers of a patch, Q tokens of an image, I images, N patches.

HEADER = 2
"""Numbers of a token before its share of the patches."""


def fold_patches(patches: np.ndarray, tokens: int) -> np.ndarray:
    """uint8 (R, K, P) -> (1, Q, 2 + P * ceil(R * K / Q)): the patches of an image shared by a fixed number of tokens.

    The first numbers of each are the rows and columns of the image; what is left over is 0.
    """
    rows, columns, width = patches.shape
    if max(rows, columns) > MAX_BYTE:
        raise ValueError(
            f"an image that is resampled has at most {MAX_BYTE} patches along a side, not {rows}x{columns}"
        )
    each = -(-rows * columns // tokens)
    folded = np.zeros((tokens * each, width), dtype=np.uint8)
    folded[: rows * columns] = patches.reshape(-1, width)
    header = np.broadcast_to(np.array([rows, columns], dtype=np.uint8), (tokens, HEADER))
    return np.concatenate([header, folded.reshape(tokens, -1)], axis=1)[None]


def unfold_patches(values: Tensor, tokens: int, width: int) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Tokens (I * Q, C) of `fold_patches`, padded or not -> patches (N, P) of all images, and rows and columns of each.

    The host learns the shapes here, once a batch.
    """
    images = values.view(-1, tokens, values.shape[-1])
    grids = tuple((int(rows), int(columns)) for rows, columns in images[:, 0, :HEADER].tolist())
    found = [values.new_zeros(0, width)]
    for image, (rows, columns) in zip(images, grids, strict=True):
        each = -(-rows * columns // tokens)
        found.append(image[:, HEADER : HEADER + each * width].reshape(-1, width)[: rows * columns])
    return torch.cat(found), grids


def as_wide(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(M, C) each, C as large as the largest: shares of patches differ where images do."""
    width = max((image.shape[-1] for image in images), default=0)
    return [np.pad(image, ((0, 0), (0, width - image.shape[-1]))) for image in images]
