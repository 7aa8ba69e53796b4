"""Image policy: how a picture of any size becomes one of the sizes that are made into codes."""

from __future__ import annotations

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
from tokenizers_vq.media import PatchSpec

Fit = Literal["pad", "crop"]
Augmentation = Literal["flip", "place"]
MIN_PLACED_SIDE = 0.7
"""The minimum side, as a share of the whole, of a picture that `place` shrinks."""
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


def resize_to_patches(image: Image.Image, spec: PatchSpec) -> np.ndarray:
    """RGB picture -> uint8 (H, W, 3) whose sides are multiples of a patch, resized with antialiasing."""
    rows, columns = spec.patch_grid(image.height, image.width)
    size = (columns * spec.size, rows * spec.size)
    resized = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.uint8).copy()


def cut_patches(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W, 3) -> (R, K, 3 * size * size), each patch channel by channel as a convolution's weights lie."""
    rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
    cut = pixels.reshape(rows, size, columns, size, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(cut).reshape(rows, columns, -1)


def join_patches(patches: np.ndarray, size: int) -> np.ndarray:
    """The inverse of `cut_patches`: (R, K, 3 * size * size) -> (R * size, K * size, 3)."""
    rows, columns = patches.shape[:2]
    joined = patches.reshape(rows, columns, 3, size, size).transpose(0, 3, 1, 4, 2)
    return np.ascontiguousarray(joined).reshape(rows * size, columns * size, 3)


def augment(image: Image.Image, kinds: Sequence[Augmentation], random: Random) -> Image.Image:
    """A variant of a picture, of the same size, that keeps what it shows.

    `flip` mirrors left and right half of the time; `place` shrinks the picture a little and puts it anywhere on a
    ground of its border's colour, so that the same object meets the grid of codes in many ways.
    """
    if "flip" in kinds and random.random() < 0.5:
        image = ImageOps.mirror(image)
    if "place" in kinds:
        share = random.uniform(MIN_PLACED_SIDE, 1)
        inner = (round(image.width * share), round(image.height * share))
        corner = (random.randint(0, image.width - inner[0]), random.randint(0, image.height - inner[1]))
        image = _paste(image.resize(inner, Image.Resampling.BICUBIC), (image.height, image.width), corner)
    return image


def stackable(pictures: Sequence[Tensor], max_count: int) -> Iterator[list[int]]:
    """Indices of pictures (3, H, W) of one size, at most `max_count` at a time; each once, in order within a size."""
    by_size: defaultdict[torch.Size, list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        by_size[picture.shape].append(index)
    for indices in by_size.values():
        yield from (indices[start : start + max_count] for start in range(0, len(indices), max_count))


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
