"""Edits made from easy-VQA images: a picture, a request to recolour its shape, and the picture with that done.

easy-VQA draws one shape of a flat colour on a ground of another, with an antialiased edge. Every pixel is therefore a
mixture of the two, and the answer is known to the pixel: the same mixture of the ground and the new colour.
"""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.documents import DamagedSample, ImageSegment, Segment, TextSegment
from data_pipelines.sources.easy_vqa_deduction import COLOURS

# Shapes: H height, W width in pixels.

PAINTS = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
"""What easy-VQA paints with; its green is the lime of CSS."""
EDIT_REQUESTS = ("make it {target}", "paint it {target}", "turn the shape {target}", "change the colour to {target}")
SHAPE_REQUESTS = ("make the {shape} {target}", "turn the {shape} {target}", "change the {colour} {shape} to {target}")
ROUNDING = 1.5
"""How far a mixture of two colours may lie from the line between them, in steps of 255; in the data set it is 1."""


@dataclass(frozen=True, kw_only=True)
class ColouredImage:
    """An image whose colour is settled, and its shape where that is settled too."""

    image_id: int
    path: Path
    colour: str
    shape: str | None


def shape_share(pixels: np.ndarray, colour: str) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W): how much of each pixel is the shape, 0 on the ground and 1 inside.

    Raises DamagedSample when the picture is not one flat shape of that colour on a flat ground.
    """
    values, counts = np.unique(pixels.astype(np.int64) @ [65536, 256, 1], return_counts=True)
    commonest = int(values[counts.argmax()])
    ground = np.array([commonest >> 16, commonest >> 8 & 255, commonest & 255], dtype=np.float64)
    axis = np.array(PAINTS[colour]) - ground
    share = ((pixels - ground) @ axis / max(axis @ axis, 1)).clip(0, 1)
    if share.max() < 1 or np.abs(ground + share[..., None] * axis - pixels).max() > ROUNDING:
        raise DamagedSample(f"not one flat {colour} shape on a flat ground")
    return share


def recolour(image: Image.Image, colour: str, target: str) -> Image.Image:
    """The picture with its shape in another colour; pixels without a part of the shape stay as they are.

    Raises DamagedSample as `shape_share` does.
    """
    pixels = np.asarray(image)
    change = np.array(PAINTS[target]) - np.array(PAINTS[colour])
    painted = pixels + shape_share(pixels, colour)[..., None] * change
    return Image.fromarray(painted.round().clip(0, 255).astype(np.uint8))


def can_edit(image: ColouredImage) -> bool:
    """Whether its colour is found in its picture."""
    try:
        shape_share(np.asarray(ImageSegment(source=image.path).open()), image.colour)
    except DamagedSample:
        return False
    return True


def plan_edits(images: Sequence[ColouredImage], number: int, rng: random.Random) -> Iterator[tuple[ColouredImage, str]]:
    """(image, its new colour), in rounds: every image comes once before any comes again, and then in another colour.

    Within a round the images of each colour take the seven others in turn, so that any beginning is about even.
    """
    order = rng.sample(images, len(images))
    seen: Counter[str] = Counter()
    turns = []
    for image in order:
        turns.append(seen[image.colour])
        seen[image.colour] += 1
    for index in range(number):
        times, chosen = divmod(index, len(order))
        step = 1 + (turns[chosen] + times) % (len(COLOURS) - 1)
        yield order[chosen], COLOURS[(COLOURS.index(order[chosen].colour) + step) % len(COLOURS)]


def make_edit(image: ColouredImage, target: str, rng: random.Random) -> tuple[Segment, ...]:
    """The picture, the request, and the recoloured picture. Its words are drawn."""
    forms = EDIT_REQUESTS + SHAPE_REQUESTS if image.shape else EDIT_REQUESTS
    request = rng.choice(forms).format(colour=image.colour, shape=image.shape, target=target)
    shown = ImageSegment(source=image.path)
    answer = io.BytesIO()
    recolour(shown.open(), image.colour, target).save(answer, "PNG")
    return shown, TextSegment(text=request, role="request"), ImageSegment(source=answer.getvalue(), role="answer")
