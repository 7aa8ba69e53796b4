"""Image policy: how a picture of any size becomes the square that the image tokenizer takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Fit = Literal["pad", "crop"]
Augmentation = Literal["flip", "place"]
SMALLEST_PLACED = 0.7
"""The least side, as a share of the square, of a picture that `place` shrinks."""


@dataclass(frozen=True, kw_only=True)
class ImagePolicy:
    """Pictures shown to the model keep all content (`pad`); pictures to draw fill the frame (`crop`).

    Chameleon's choice (arXiv 2405.09818, section 4.2). Padding continues the colour of the picture's border.
    """

    size: int
    shown: Fit = "pad"
    drawn: Fit = "crop"

    def apply(self, image: Image.Image, role: str) -> Image.Image:
        """A square RGB picture of `size` pixels; role `answer` is drawn, everything else is shown."""
        return fit_square(image, self.size, self.drawn if role == "answer" else self.shown)


def fit_square(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """Resize with antialiasing to `size` x `size`, by border padding or by centre crop."""
    if image.size == (size, size):
        return image
    if fit == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    longest = max(image.size)
    width, height = (max(1, round(side / longest * size)) for side in image.size)
    inner = image.resize((width, height), Image.Resampling.BICUBIC)
    return _paste(inner, size, ((size - inner.width) // 2, (size - inner.height) // 2))


def augment(image: Image.Image, kinds: Sequence[Augmentation], random: Random) -> Image.Image:
    """A variant of a square picture that keeps what it shows.

    `flip` mirrors left and right half of the time; `place` shrinks the picture a little and puts it anywhere on a
    ground of its border's colour, so that the same object meets the grid of codes in many ways.
    """
    if "flip" in kinds and random.random() < 0.5:
        image = ImageOps.mirror(image)
    if "place" in kinds:
        size = image.width
        side = round(size * random.uniform(SMALLEST_PLACED, 1))
        corner = (random.randint(0, size - side), random.randint(0, size - side))
        image = _paste(image.resize((side, side), Image.Resampling.BICUBIC), size, corner)
    return image


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32).copy()).permute(2, 0, 1) / 127.5 - 1


def to_image(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> RGB picture."""
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(array.cpu().numpy(), "RGB")


def _paste(image: Image.Image, size: int, corner: tuple[int, int]) -> Image.Image:
    canvas = Image.new("RGB", (size, size), _border_colour(image))
    canvas.paste(image, corner)
    return canvas


def _border_colour(image: Image.Image) -> tuple[int, int, int]:
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = np.median(border, axis=0).astype(int).tolist()
    return red, green, blue
