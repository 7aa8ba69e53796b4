"""How media lie in a shard: `KEY.NAME.npy` holds the tokens of all images of a document, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from data_pipelines.deferred import Deferred
from data_pipelines.images import cut_patches
from data_pipelines.old_names import MEMBERS
from data_pipelines.shards.format import Manifest, TokenDocument
from tokenizers_vq.media import LATENTS, PATCHES, MediaSpec, PatchSpec

# Shapes: N stored rows, M tokens of all images of a document, R and K rows and columns of an image, C width of a token.

STORED_DTYPES = {LATENTS: np.dtype(np.float16), PATCHES: np.dtype(np.uint8)}
"""What the numbers of each kind are stored in; another kind of media is a line here and a MediaSpec."""


class MediaCodec(Protocol):
    """Reads the media of one member: `name` is what the document calls them."""

    @property
    def name(self) -> str: ...
    def check(self, key: str, stored: np.ndarray) -> None:
        """Raises ValueError, naming the document, for an array that is not one of these media."""
        ...

    def image(self, rows: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """The stored rows of one image, and the two numbers that its segment states -> (R, K, C)."""
        ...


@dataclass(frozen=True)
class TokenCodec:
    """A row of the array is a token; a segment states rows and columns."""

    spec: MediaSpec

    @property
    def name(self) -> str:
        return self.spec.name

    def check(self, key: str, stored: np.ndarray) -> None:
        dtype = STORED_DTYPES[self.name]
        if len(stored.shape) != 2 or stored.shape[1] != self.spec.width or stored.dtype != dtype:
            raise ValueError(
                f"{key!r}: {self.name} are {dtype} in rows of {self.spec.width}, "
                f"not {stored.dtype} of shape {stored.shape}"
            )
        if dtype.kind == "f" and not np.isfinite(stored).all():
            raise ValueError(f"{key!r}: its {self.name} are not all numbers")

    def image(self, rows: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        return rows.reshape(*grid, -1)


@dataclass(frozen=True)
class PixelCodec:
    """Of format version 1: a row of the array is a pixel, a segment states height and width, reading cuts patches."""

    patches: PatchSpec
    name: str = PATCHES

    def check(self, key: str, stored: np.ndarray) -> None:
        if len(stored.shape) != 2 or stored.shape[1] != 3 or stored.dtype != np.uint8:
            raise ValueError(f"{key!r}: pixels are uint8 in rows of three, not {stored.dtype} of shape {stored.shape}")

    def image(self, rows: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        size = self.patches.size
        if any(length % size for length in grid):
            raise ValueError(f"an image of {grid[0]}x{grid[1]} pixels cannot be cut into patches of {size}")
        shape = (grid[0] // size, grid[1] // size, self.patches.width)
        return Deferred(shape, partial(cut_patches, rows.reshape(*grid, 3), size))  # pyright: ignore[reportReturnType]


def codecs(manifest: Manifest) -> dict[str, MediaCodec]:
    """What reads each member of a folder's shards, by the name of the member."""
    found: dict[str, MediaCodec] = {name: TokenCodec(spec) for name, spec in manifest.media.items()}
    if manifest.format_version > 1:
        return found
    for member, name in MEMBERS.items():
        if name in found and isinstance(sizing := manifest.media[name].sizing, PatchSpec):
            del found[name]
            found[member] = PixelCodec(sizing)
    return found


def stored_media(document: TokenDocument, media: Mapping[str, MediaSpec]) -> dict[str, np.ndarray]:
    """The members of a document: name -> (M, C), the tokens of its images one after the other.

    Raises ValueError for media that the manifest does not name, or of another width.
    """
    found: dict[str, list[np.ndarray]] = {}
    for segment in document.segments:
        for name, values in segment.media.items():
            if name not in media or values.shape[-1] != media[name].width:
                raise ValueError(
                    f"{document.key!r} holds {name} of {values.shape[-1]} numbers, which the manifest does not describe"
                )
            found.setdefault(name, []).append(np.asarray(values).reshape(-1, values.shape[-1]))
    return {name: np.concatenate(arrays).astype(STORED_DTYPES[name]) for name, arrays in found.items()}
