"""Media: what stands in a sequence without being ids, latents of an autoencoder or patches of pixels.

Pure facts, the same in shards, batches and models: how wide a token is, what made it, how many tokens an image takes.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from tokenizers_vq.field_types import from_plain

LATENTS, PATCHES = "latents", "patches"
MAX_BYTE = 255


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """Latents of an autoencoder: one for each square of `reduction` x `reduction` pixels.

    The autoencoder was trained on squares of `image_size` pixels.
    """

    reduction: int
    image_size: int

    def __post_init__(self) -> None:
        if not 1 <= self.reduction <= self.image_size:
            raise ValueError(f"a latent covers at least one pixel, and an image at least one latent, got {self}")

    @property
    def max_side(self) -> int:
        """Latents along a side of the autoencoder's square."""
        return self.image_size // self.reduction

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of latents of an image of this size in pixels."""
        return height // self.reduction, width // self.reduction


@dataclass(frozen=True, kw_only=True)
class PatchSpec:
    """Patches of `size` x `size` pixels that a ViT sees; an image keeps its shape (NaViT, arXiv 2307.06304).

    The sides of an image become multiples of `size`. An image of more than `max_patches` patches, or of more than
    `max_side` along a side, shrinks; none grows but to its next multiple. With `tokens`, a square number, an image
    takes that many tokens whatever its shape (a resampler's queries), else one for each patch.
    """

    size: int = 8
    max_patches: int = 64
    max_side: int = 32
    tokens: int = 0

    def __post_init__(self) -> None:
        if min(self.size, self.max_patches, self.max_side) < 1:
            raise ValueError(f"patches have at least one pixel, and images at least one patch, got {self}")
        if self.tokens < 0 or math.isqrt(self.tokens) ** 2 != self.tokens:
            raise ValueError(f"an image is resampled to a square number of tokens, got {self.tokens}")
        if self.tokens and self.max_side > MAX_BYTE:
            raise ValueError(f"an image that is resampled has at most {MAX_BYTE} patches along a side, got {self}")

    @classmethod
    def of(cls, size: int, max_patches: int | None = None) -> PatchSpec:
        """For patches of this size and at most so many; sides may be twice as long as a square's, or the default."""
        count = cls.max_patches if max_patches is None else max_patches
        return cls(size=size, max_patches=count, max_side=max(cls.max_side, 2 * math.isqrt(max(count, 0))))

    @property
    def width(self) -> int:
        """Numbers of a patch: three channels of each pixel."""
        return 3 * self.size**2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns in the sequence of an image of this size in pixels."""
        return (1, self.tokens) if self.tokens else self.patch_grid(height, width)

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of this size in pixels."""
        limits = (self.max_side * self.size / side for side in (height, width))
        shrink = min(1.0, (self.max_patches * self.size**2 / (height * width)) ** 0.5, *limits)
        rows, columns = (max(1, round(side * shrink / self.size)) for side in (height, width))
        while rows * columns > self.max_patches:
            rows, columns = (rows - 1, columns) if rows >= columns else (rows, columns - 1)
        return rows, columns


SIZINGS: dict[str, type[LatentSpec] | type[PatchSpec]] = {LATENTS: LatentSpec, PATCHES: PatchSpec}
"""What decides the number of tokens of an image, by the name of the media."""


@dataclass(frozen=True, kw_only=True)
class MediaSpec:
    """One kind of media: its name, its numbers per token (`width`) and how many tokens an image takes (`sizing`).

    `source` is the hash of the autoencoder whose latents they are; it is empty for patches, made of pixels alone.
    """

    name: str
    width: int
    sizing: LatentSpec | PatchSpec
    source: str = ""

    def __post_init__(self) -> None:
        if self.name not in SIZINGS or not isinstance(self.sizing, SIZINGS[self.name]):
            raise ValueError(f"media are one of {', '.join(SIZINGS)}, each with its own sizing, got {self}")
        if self.width < 1:
            raise ValueError(f"a token of {self.name} has at least one number, got {self.width}")

    @classmethod
    def of_patches(cls, spec: PatchSpec) -> MediaSpec:
        """Patches of this size."""
        return cls(name=PATCHES, width=spec.width, sizing=spec)

    def resampled(self, tokens: int) -> MediaSpec:
        """Patches of which any image takes so many tokens; 0 is one for each patch."""
        return dataclasses.replace(self, sizing=dataclasses.replace(self.sizing, tokens=tokens))

    @property
    def max_side(self) -> int:
        """Tokens along the longest side of an image: the side of a table of their positions."""
        return self.sizing.max_side

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns in the sequence of an image of this size in pixels."""
        return self.sizing.grid(height, width)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; a resampler's tokens are named only where there are some."""
        values = dataclasses.asdict(self)
        if not values["sizing"].get("tokens"):
            values["sizing"].pop("tokens", None)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MediaSpec:
        """The inverse of `to_dict`. Raises ValueError for anything else."""
        try:
            return from_plain(cls, {**values, "sizing": from_plain(SIZINGS[values["name"]], values["sizing"])})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a media spec: {error}") from error
