"""A picture as a viewer shows it: upright, in sRGB, transparency over white, whatever its metadata are worth.

What is wrong with metadata never costs the pixels: an orientation, profile or text that cannot be read is ignored.
"""

from __future__ import annotations

import io
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from data_pipelines.bare import png_header, without_metadata

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*")
"""Pillow tells of broken metadata, which are ignored here; what cannot be used is counted by name elsewhere."""

CONVERTED = "pictures converted to sRGB by their colour profile"
NOTES = "notes"
"""The key of a picture's `info` under which it says what was done to it."""

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright (EXIF 2.32, tag 274)."""
SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK", "LAB": b"Lab "}
"""Mode -> the colour space that its ICC profile names at byte 16 (ICC.1, section 7.2.6)."""


def decode(source: Path | bytes, max_pixels: int) -> Image.Image:
    """The decoded picture of a file or its bytes, in its own mode.

    Raises ValueError for more than `max_pixels`, and whatever Pillow raises for pixels that cannot be read.
    """
    content = source if isinstance(source, bytes) else source.read_bytes()
    try:
        return _decoded(content, max_pixels)
    except TooManyPixels:
        raise
    except Exception:  # perhaps only of metadata: of them a picture can do without
        bare = without_metadata(content)
        if bare is None:
            raise
        return _decoded(bare, max_pixels)


class TooManyPixels(ValueError):
    """A picture is larger than allowed."""


def _decoded(content: bytes, max_pixels: int) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    if image.width * image.height > max_pixels:
        raise TooManyPixels(f"{image.width}x{image.height} pixels, over {max_pixels}")
    tiles = image.tile
    image.load()
    if image.format == "GIF" and tiles and tiles[0].extents is not None:
        image.info["frame"] = tuple(tiles[0].extents)
    if (header := png_header(content)) is not None:
        image.info["depth"] = header.depth
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode to RGB in sRGB, upright as its EXIF orientation says; transparency is laid over white."""
    image = upright(image)
    opaque, alpha = _colours(image), _within_frame(image, _alpha(image))
    profile = image.info.get("icc_profile")
    plain, notes = _converted(opaque, profile if isinstance(profile, bytes) else b"")
    if alpha is not None:
        white = Image.new("RGB", plain.size, "white")
        plain = Image.composite(plain, white, alpha)
    plain.info = {NOTES: notes} if notes else {}
    return plain


def notes_of(image: Image.Image) -> tuple[str, ...]:
    """What `to_rgb` did to a picture that a user should know in numbers."""
    return image.info.get(NOTES, ())


def upright(image: Image.Image) -> Image.Image:
    """Turned and mirrored as its EXIF orientation says; as it is where that is missing, broken or no orientation."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # broken EXIF raises errors of every kind
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = dict(image.info)
    return turned


def _colours(image: Image.Image) -> Image.Image:
    """Without its alpha: RGB, L, CMYK or LAB of 8 bits."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _to_eight_bits(image)
    if image.mode in ("RGB", "L", "CMYK", "LAB"):
        return _untransparent(image, image.mode)
    straight = _straight(image)
    return _untransparent(straight, "L" if straight.mode in ("1", "LA") else "RGB")


def _straight(image: Image.Image) -> Image.Image:
    """Without palettes and premultiplied alpha."""
    wanted = {"La": "LA", "RGBa": "RGBA", "P": "RGBA", "PA": "RGBA"}.get(image.mode)
    return image if wanted is None else image.convert(wanted)


def _untransparent(image: Image.Image, mode: str) -> Image.Image:
    """Converted without Pillow's own reading of `transparency`, which `_alpha` does."""
    copy = image.copy()
    copy.info.pop("transparency", None)
    return copy if copy.mode == mode else copy.convert(mode)


def _alpha(image: Image.Image) -> Image.Image | None:
    """L, 255 where a picture is opaque; None where all of it is."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return _straight(image).getchannel("A")
    key = image.info.get("transparency")
    if key is None:
        return None
    if image.mode == "P":
        return _straight(image).getchannel("A")
    depth = image.info.get("depth", 8)
    pixels = np.asarray(image)
    clear = _matches(pixels, key, image.mode, depth)
    return None if clear is None else Image.fromarray(np.where(clear, 0, 255).astype(np.uint8))


def _within_frame(image: Image.Image, alpha: Image.Image | None) -> Image.Image | None:
    """The alpha of a GIF, whose first frame may be smaller than its screen: around it nothing is drawn."""
    frame = image.info.get("frame")
    if frame is None or frame == (0, 0, *image.size):
        return alpha
    whole = Image.new("L", image.size, 0)
    whole.paste(255 if alpha is None else alpha.crop(frame), frame)
    return whole


def _matches(pixels: np.ndarray, key: Any, mode: str, depth: int) -> np.ndarray | None:
    """Where pixels have the transparent colour, which PNG gives in samples of the file's depth (PNG 11.3.2.1)."""
    if mode == "RGB" and isinstance(key, tuple) and len(key) == 3:
        shift = 8 if depth == 16 else 0  # of 16 bits Pillow keeps the upper 8
        return (pixels == [sample >> shift for sample in key]).all(axis=-1)
    if not isinstance(key, int):
        return None
    if mode == "1":
        return pixels == bool(key)
    if mode == "L":
        return pixels == key * (255 // (2**depth - 1) if depth < 8 else 1)
    return pixels == key if mode.startswith("I") else None


def _converted(image: Image.Image, profile: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    """RGB in sRGB, and what was done. A profile that is broken or of another colour space is ignored."""
    if profile and profile[16:20] == SPACES["RGB"] and image.mode == "L":
        image = image.convert("RGB")
    if not profile or profile[16:20] != SPACES.get(image.mode):
        return _plain_rgb(image), ()
    try:
        transform = _to_srgb(profile, image.mode)
        if transform is None:
            return image.convert("RGB"), ()
        converted = ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError):
        return _plain_rgb(image), ()
    return (_plain_rgb(image), ()) if converted is None else (converted, (CONVERTED,))


def _plain_rgb(image: Image.Image) -> Image.Image:
    if image.mode != "LAB":
        return image.convert("RGB")
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None
    return converted


@lru_cache(maxsize=256)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform of a profile, by relative colorimetry; None for one that changes no RGB by more than 1 of 255."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", renderingIntent=intent)
    if mode != "RGB":
        return transform
    cube = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3, indexing="ij"), axis=-1).astype(np.uint8)
    before = cube.reshape(-1, len(cube), 3)
    after = ImageCms.applyTransform(Image.fromarray(before), transform)
    assert after is not None
    change = np.abs(np.asarray(after, dtype=np.int16) - before.astype(np.int16)).max()
    return None if change <= 1 else transform


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, 32 bits or floats to 8 bits, where Pillow alone would cut everything above 255 to white.

    16 bits have a scale of their own. The others do not: the full scale is the first of 1 (floats only), 255 and
    65535 that holds the brightest pixel, or else that pixel. Below 0 is black.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    if image.mode.startswith("I;16"):
        scale = 65535.0
    else:
        scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        brightest = float(values.max(initial=0.0))
        scale = next((scale for scale in scales if brightest <= scale), brightest)
    return Image.fromarray((values.clip(0, scale) * (255 / scale)).round().astype(np.uint8))
