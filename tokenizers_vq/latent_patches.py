"""Latent patches: squares of an autoencoder's latents as the rows that a flow branch takes, in BAGEL's order."""

from __future__ import annotations

from torch import Tensor

# Shapes: C channels of a latent, R, K rows and columns of latents, P side of a patch, M = (R / P) * (K / P) patches.

BAGEL_PATCH = 2


def check_latent_patch(patch: object) -> None:
    """Raises ValueError for a side of patches that is none."""
    if type(patch) is not int or patch < 1:
        raise ValueError(f"a latent patch is a whole number of latents along a side, at least 1, got {patch!r}")


def latents_to_patches(latents: Tensor, patch: int = BAGEL_PATCH) -> Tensor:
    """latents (..., C, R, K) -> (..., M, P * P * C): patches row by row; in each, row, column, then channel.

    Raises ValueError where the patch does not divide R and K; BAGEL cuts what is over off.
    """
    rows, columns = latents.shape[-2:]
    if rows % patch or columns % patch:
        raise ValueError(
            f"{rows}x{columns} latents cannot be cut into patches of {patch}x{patch}: cut what is over off"
        )
    cut = latents.unflatten(-1, (columns // patch, patch)).unflatten(-3, (rows // patch, patch))
    return cut.movedim(-5, -1).movedim(-4, -3).flatten(-3).flatten(-3, -2)


def patches_to_latents(patches: Tensor, rows: int, columns: int, patch: int = BAGEL_PATCH) -> Tensor:
    """The inverse: (..., M, P * P * C) -> (..., C, R, K) for R / P rows and K / P columns of patches.

    Raises ValueError where these are not as many patches, or of another width.
    """
    count, width = patches.shape[-2:]
    if count != rows * columns or width % patch**2:
        raise ValueError(f"{count} patches of {width} numbers are not {rows}x{columns} patches of {patch}x{patch}")
    cut = patches.unflatten(-1, (patch, patch, -1)).unflatten(-4, (rows, columns))
    return cut.movedim(-4, -3).movedim(-1, -5).flatten(-2).flatten(-3, -2)
