"""What every backbone config tells, and which images it takes."""

from __future__ import annotations

from torch import Tensor


class BackboneConfig:
    """The choice of a backbone; a config names one of its subclasses."""

    @property
    def reduction(self) -> int:
        """Pixels along one side of a code."""
        raise NotImplementedError


def check_sides(images: Tensor, side: int) -> None:
    """Raise ValueError for images that are not cut into patches of `side` pixels."""
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < 1 or shape[2] % side or shape[3] % side:
        raise ValueError(f"this tokenizer takes images of shape (B, 3, H, W), H and W multiples of {side}, got {shape}")
