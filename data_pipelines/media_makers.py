"""What makes the media of a picture: an autoencoder its latents, a patch size its patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_pipelines.images import PixelSize, cut_patches, resize_to_patches, stackable
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.latents import LatentAutoencoder
from tokenizers_vq.media import MediaSpec, PatchSpec

# Shapes: H, W sides of a picture in pixels; R, K rows and columns and C channels of its media.

IMAGES_AT_ONCE = 256
"""Pictures that go through an encoder together, unless said."""


class MediaMaker(Protocol):
    """Makes one kind of media: `read` runs in threads, picture by picture, `make` on many at a time."""

    @property
    def spec(self) -> MediaSpec: ...
    @property
    def reads_original(self) -> bool:
        """Whether it takes pictures in their own shape, not as the image tokenizer does."""
        ...

    def check(self, image: ImageTokenizer, aspect_ratio: float) -> None:
        """Raises ValueError where it does not go with an image tokenizer or with images of several sizes."""
        ...

    def grid(self, original: PixelSize, coded: PixelSize) -> tuple[int, int]:
        """Rows and columns of a picture's media, by its own size and by that which the image tokenizer takes."""
        ...

    def read(self, original: Image.Image, pixels: Tensor) -> Any:
        """What `make` needs of a picture: RGB, and (3, H, W) in [-1, 1] as the image tokenizer takes it."""
        ...

    def make(self, pictures: Sequence[Any], at_once: int = ...) -> list[np.ndarray]:
        """What was read of some pictures -> (R, K, C) of each; `at_once` of them go through an encoder together."""
        ...


class LatentsMaker:
    """Latents in float16, of the pictures that the image tokenizer makes codes of."""

    reads_original = False

    def __init__(self, autoencoder: LatentAutoencoder) -> None:
        self.autoencoder, self.spec = autoencoder, autoencoder.media

    def check(self, image: ImageTokenizer, aspect_ratio: float) -> None:
        if aspect_ratio != 1:
            raise ValueError("the flow branch draws squares alone: give an autoencoder or an aspect ratio, not both")
        if self.autoencoder.image_size != image.image_size:
            raise ValueError(
                f"the autoencoder takes pictures of {self.autoencoder.image_size} pixels, the image tokenizer of "
                f"{image.image_size}: train one of them anew"
            )

    def grid(self, original: PixelSize, coded: PixelSize) -> tuple[int, int]:
        del original
        return coded[0] // self.autoencoder.reduction, coded[1] // self.autoencoder.reduction

    def read(self, original: Image.Image, pixels: Tensor) -> Tensor:
        del original
        return pixels

    def make(self, pictures: Sequence[Tensor], at_once: int = IMAGES_AT_ONCE) -> list[np.ndarray]:
        latents: dict[int, np.ndarray] = {}
        device = self.autoencoder.device
        for group in stackable(pictures, at_once):
            pixels = torch.stack([pictures[index] for index in group]).to(device)
            found = self.autoencoder.encode(pixels).permute(0, 2, 3, 1).half().cpu().numpy()
            latents |= dict(zip(group, found, strict=True))
        return [latents[index] for index in range(len(pictures))]


class PatchesMaker:
    """Patches in uint8, of pictures in their own shape."""

    reads_original = True

    def __init__(self, patches: PatchSpec) -> None:
        self.patches, self.spec = patches, MediaSpec.of_patches(patches)

    def check(self, image: ImageTokenizer, aspect_ratio: float) -> None:
        del image, aspect_ratio

    def grid(self, original: PixelSize, coded: PixelSize) -> tuple[int, int]:
        del coded
        return self.patches.patch_grid(*original)

    def read(self, original: Image.Image, pixels: Tensor) -> np.ndarray:
        del pixels
        return cut_patches(resize_to_patches(original, self.patches), self.patches.size)

    def make(self, pictures: Sequence[np.ndarray], at_once: int = IMAGES_AT_ONCE) -> list[np.ndarray]:
        del at_once
        return list(pictures)
