"""Image policy: how a picture of any size becomes one of the sizes that are made into codes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.layout import GridLayout, Layout, nearest_shape

Fit = Literal["pad", "crop"]
Augmentation = Literal["flip", "place"]
SMALLEST_PLACED = 0.7
"""The least side, as a share of the whole, of a picture that `place` shrinks."""
PixelSize = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True, kw_only=True)
class ImagePolicy:
    """Pictures shown to the model keep all content (`pad`); pictures to draw fill the frame (`crop`).

    Chameleon's choice (arXiv 2405.09818, section 4.2). Padding continues the colour of the picture's border. A picture
    takes that of `sizes` (height, width) whose shape is nearest to its own; without them, all are squares of `size`.
    """

    size: int
    shown: Fit = "pad"
    drawn: Fit = "crop"
    sizes: tuple[PixelSize, ...] = ()

    def __post_init__(self) -> None:
        sizes = tuple(sorted((int(height), int(width)) for height, width in self.sizes))
        if self.size < 1 or any(min(size) < 1 for size in sizes):
            raise ValueError(f"pictures have at least one pixel, got size {self.size} and sizes {self.sizes}")
        object.__setattr__(self, "sizes", sizes)

    @classmethod
    def of(cls, image: ImageTokenizer, layout: Layout) -> ImagePolicy:
        """For the pictures of a layout, as a tokenizer takes them."""
        side = image.reduction
        several = layout.sizes if isinstance(layout, GridLayout) else ()
        return cls(size=image.image_size, sizes=tuple((rows * side, columns * side) for rows, columns in several))

    def size_of(self, image: Image.Image) -> PixelSize:
        """The size that a picture is given."""
        return nearest_shape(self.sizes or ((self.size, self.size),), image.height, image.width)

    def apply(self, image: Image.Image, role: str) -> Image.Image:
        """An RGB picture of one of the sizes; role `answer` is drawn, everything else is shown."""
        return fit_to(image, self.size_of(image), self.drawn if role == "answer" else self.shown)


def fit_to(image: Image.Image, size: PixelSize, fit: Fit) -> Image.Image:
    """Resize with antialiasing to a height and width, by border padding or by centre crop."""
    height, width = size
    if image.size == (width, height):
        return image
    if fit == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    if image.width * height >= image.height * width:
        inner = (width, max(1, round(image.height / image.width * width)))
    else:
        inner = (max(1, round(image.width / image.height * height)), height)
    corner = ((width - inner[0]) // 2, (height - inner[1]) // 2)
    return _paste(image.resize(inner, Image.Resampling.BICUBIC), size, corner)


@dataclass(frozen=True, kw_only=True)
class PatchPolicy:
    """Pictures that a ViT sees keep their shape (NaViT, arXiv 2307.06304).

    Their sides become multiples of `patch` pixels. A picture of more than `most` patches, or more than `longest` along
    a side, shrinks; none grows but to its next multiple.
    """

    patch: int = 8
    most: int = 64
    longest: int = 32

    def __post_init__(self) -> None:
        if min(self.patch, self.most, self.longest) < 1:
            raise ValueError(f"patches have at least one pixel, and pictures at least one patch, got {self}")

    @classmethod
    def of(cls, patch: int, most: int | None = None) -> PatchPolicy:
        """For patches of this side and at most so many, with sides twice as long as a square's or the default."""
        most = cls.most if most is None else most
        return cls(patch=patch, most=most, longest=max(cls.longest, 2 * math.isqrt(max(most, 0))))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of a picture of this size in pixels."""
        shrink = min(1.0, (self.most * self.patch**2 / (height * width)) ** 0.5, *self._limits(height, width))
        rows, columns = (max(1, round(side * shrink / self.patch)) for side in (height, width))
        while rows * columns > self.most:
            rows, columns = (rows - 1, columns) if rows >= columns else (rows, columns - 1)
        return rows, columns

    def apply(self, image: Image.Image) -> np.ndarray:
        """RGB picture -> uint8 (H, W, 3), resized with antialiasing."""
        rows, columns = self.grid(image.height, image.width)
        size = (columns * self.patch, rows * self.patch)
        resized = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
        return np.asarray(resized, dtype=np.uint8).copy()

    def _limits(self, height: int, width: int) -> tuple[float, float]:
        return self.longest * self.patch / height, self.longest * self.patch / width


def cut_patches(pixels: np.ndarray, patch: int) -> np.ndarray:
    """uint8 (H, W, 3) -> (R, K, 3 * patch * patch), each patch channel by channel as a convolution's weights lie."""
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    cut = pixels.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(cut).reshape(rows, columns, -1)


def augment(image: Image.Image, kinds: Sequence[Augmentation], random: Random) -> Image.Image:
    """A variant of a picture, of the same size, that keeps what it shows.

    `flip` mirrors left and right half of the time; `place` shrinks the picture a little and puts it anywhere on a
    ground of its border's colour, so that the same object meets the grid of codes in many ways.
    """
    if "flip" in kinds and random.random() < 0.5:
        image = ImageOps.mirror(image)
    if "place" in kinds:
        share = random.uniform(SMALLEST_PLACED, 1)
        inner = (round(image.width * share), round(image.height * share))
        corner = (random.randint(0, image.width - inner[0]), random.randint(0, image.height - inner[1]))
        image = _paste(image.resize(inner, Image.Resampling.BICUBIC), (image.height, image.width), corner)
    return image


def stackable(pictures: Sequence[Tensor], most: int) -> Iterator[list[int]]:
    """Indices of pictures (3, H, W) of one size, at most `most` at a time; each once, in order within a size."""
    alike: defaultdict[torch.Size, list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        alike[picture.shape].append(index)
    for indices in alike.values():
        yield from (indices[start : start + most] for start in range(0, len(indices), most))


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32).copy()).permute(2, 0, 1) / 127.5 - 1


def to_image(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> RGB picture."""
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(array.cpu().numpy(), "RGB")


def _paste(image: Image.Image, size: PixelSize, corner: tuple[int, int]) -> Image.Image:
    height, width = size
    canvas = Image.new("RGB", (width, height), _border_colour(image))
    canvas.paste(image, corner)
    return canvas


def _border_colour(image: Image.Image) -> tuple[int, int, int]:
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = np.median(border, axis=0).astype(int).tolist()
    return red, green, blue
