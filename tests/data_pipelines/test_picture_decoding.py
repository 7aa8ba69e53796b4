"""Pictures as a viewer shows them: transparency, colour profiles, orientation, and metadata that are worth nothing."""

from __future__ import annotations

import io
import struct
import zlib
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_pipelines.documents import DamagedSample, ImageSegment
from data_pipelines.pictures import CONVERTED, notes_of

WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (128, 128, 128)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SWAPPED = SRGB.replace(b"rXYZ", b"tmpX").replace(b"bXYZ", b"rXYZ").replace(b"tmpX", b"bXYZ")
"""An RGB profile whose red is sRGB's blue."""


def chunk(kind: bytes, data: bytes, *, sound: bool = True) -> bytes:
    check = zlib.crc32(kind + data) ^ (not sound)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def png(depth: int, colour: int, row: bytes, *extra: bytes, size: tuple[int, int] = (8, 4)) -> bytes:
    """A PNG whose rows are all the same."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress((b"\0" + row) * size[1]))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + body + chunk(b"IEND", b"")


def encoded(kind: str = "PNG", colour: Any = (255, 0, 0), mode: str = "RGB", **saving: Any) -> bytes:
    data = io.BytesIO()
    Image.new(mode, (8, 4), colour).save(data, kind, **saving)
    return data.getvalue()


def seen(content: bytes) -> Image.Image:
    return ImageSegment(source=content).open()


def pixel(image: Image.Image, x: int) -> tuple[int, ...]:
    found = image.getpixel((x, 1))
    assert isinstance(found, tuple)
    return found


@pytest.mark.parametrize(
    ("depth", "colour", "row", "key", "left", "right"),
    [
        (16, 0, b"\x00\x00" * 4 + b"\x80\x00" * 4, b"\0\0", WHITE, GREY),
        (16, 0, b"\x00\x01" * 4 + b"\x80\x00" * 4, b"\0\0", BLACK, GREY),
        (8, 0, b"\x00" * 4 + b"\x80" * 4, b"\0\0", WHITE, GREY),
        (4, 0, b"\x33\x33\xff\xff", b"\0\3", WHITE, WHITE),
        (4, 0, b"\x33\x33\x00\x00", b"\0\3", WHITE, BLACK),
        (2, 0, b"\x55\x00", b"\0\1", WHITE, BLACK),
        (2, 0, b"\x55\x00", b"\0\0", (85, 85, 85), WHITE),
        (1, 0, b"\xf0", b"\0\0", WHITE, WHITE),
        (1, 0, b"\x0f", b"\0\1", BLACK, WHITE),
        (8, 2, b"\xff\0\0" * 4 + b"\0\0\xff" * 4, b"\0\xff\0\0\0\0", WHITE, (0, 0, 255)),
        (16, 2, b"\xff\xff\0\0\0\0" * 4 + b"\0\0\0\0\xff\xff" * 4, b"\xff\xff\0\0\0\0", WHITE, (0, 0, 255)),
    ],
)
def test_the_transparent_colour_of_a_png_is_white_at_every_depth(
    depth: int, colour: int, row: bytes, key: bytes, left: Any, right: Any
) -> None:
    image = seen(png(depth, colour, row, chunk(b"tRNS", key)))
    assert (pixel(image, 1), pixel(image, 6)) == (left, right)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_keep_their_transparent_entries(bits: int) -> None:
    palette = chunk(b"PLTE", bytes((255, 0, 0, 0, 0, 255)))
    ones = {1: b"\x0f", 2: b"\x00\x55", 4: b"\0\0\x11\x11", 8: b"\0\0\0\0\1\1\1\1"}[bits]
    image = seen(png(bits, 3, ones, palette, chunk(b"tRNS", b"\x00")))
    assert (pixel(image, 1), pixel(image, 6)) == (WHITE, (0, 0, 255))


@pytest.mark.parametrize(
    ("mode", "colour", "kind"),
    [
        ("LA", (0, 0), "PNG"),
        ("RGBA", (9, 9, 9, 0), "PNG"),
        ("RGBA", (9, 9, 9, 0), "WEBP"),
        ("RGBA", (9, 9, 9, 0), "TIFF"),
        ("RGBA", (9, 9, 9, 0), "GIF"),
        ("PA", None, ""),
        ("La", None, ""),
        ("RGBa", None, ""),
    ],
)
def test_alpha_is_laid_over_white_in_every_mode(mode: str, colour: Any, kind: str) -> None:
    if kind:
        saving: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        image = seen(encoded(kind, colour, mode, **saving))
    else:
        clear = Image.new("LA", (8, 4), (0, 0)) if mode == "La" else Image.new("RGBA", (8, 4), (0, 0, 0, 0))
        if mode == "PA":
            clear = Image.new("P", (8, 4)).convert("PA")
            clear.putalpha(Image.new("L", (8, 4), 0))
        assert clear.convert(mode).mode == mode
        image = ImageSegment(source=clear.convert(mode)).open()
    assert pixel(image, 3) == WHITE and image.mode == "RGB"


def test_half_transparent_is_mixed_with_white_after_its_colour_is_converted() -> None:
    data = io.BytesIO()
    Image.new("RGBA", (8, 4), (255, 0, 0, 128)).save(data, "PNG", icc_profile=SWAPPED)
    red, green, blue = pixel(seen(data.getvalue()), 3)
    assert 120 <= red <= 135 and 120 <= green <= 135 and blue >= 250


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colours_are_those_of_the_profile(kind: str) -> None:
    saving: dict[str, Any] = {"quality": 95} if kind != "PNG" else {}
    image = seen(encoded(kind, icc_profile=SWAPPED, **saving))
    red, _, blue = pixel(image, 3)
    assert blue > 235 and red < 20
    assert notes_of(image) == (CONVERTED,)


def test_a_palette_is_converted_too() -> None:
    data = io.BytesIO()
    Image.new("RGB", (8, 4), (255, 0, 0)).convert("P").save(data, "PNG", icc_profile=SWAPPED)
    red, _, blue = pixel(seen(data.getvalue()), 3)
    assert blue > 235 and red < 20


def test_pictures_in_srgb_stay_to_the_bit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", icc_profile=SRGB)
    image = seen(data.getvalue())
    assert np.array_equal(np.asarray(image), pixels) and notes_of(image) == ()


@pytest.mark.parametrize("profile", [b"x", SRGB[:200], b"\0" * 400, SRGB[:128] + b"\xff" * 300])
def test_a_broken_profile_costs_nothing(profile: bytes) -> None:
    assert pixel(seen(encoded(icc_profile=profile)), 3) == (255, 0, 0)


def test_a_profile_of_another_colour_space_is_ignored() -> None:
    grey = SRGB[:16] + b"CMYK" + SRGB[20:]
    assert pixel(seen(encoded(icc_profile=grey)), 3) == (255, 0, 0)


def test_cmyk_without_a_profile_and_lab_are_read() -> None:
    assert pixel(seen(encoded("JPEG", (0, 0, 0, 0), "CMYK", quality=95)), 3) == WHITE
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (8, 4), (255, 0, 0)),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert lab is not None
    red, green, blue = pixel(ImageSegment(source=lab).open(), 3)
    assert red > 245 and green < 12 and blue < 12


def exif_jpeg(tiff: bytes) -> bytes:
    jpeg, exif = encoded("JPEG", quality=95), b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def tiff_of(*entries: tuple[int, int, int, bytes], rest: bytes = b"") -> bytes:
    body = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0) + rest


def short(value: int) -> bytes:
    return struct.pack("<HH", value, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_exif(orientation: int) -> None:
    """The picture is red in its upper left corner once it is upright."""
    upright = np.full((16, 32, 3), 255, dtype=np.uint8)
    upright[:8, :16] = (255, 0, 0)
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    stored = Image.fromarray(upright)
    for step in {
        1: (),
        2: (Image.Transpose.FLIP_LEFT_RIGHT,),
        3: (Image.Transpose.ROTATE_180,),
        4: (Image.Transpose.FLIP_TOP_BOTTOM,),
        5: (Image.Transpose.TRANSPOSE,),
        6: (Image.Transpose.ROTATE_270,),
        7: (Image.Transpose.TRANSVERSE,),
        8: (Image.Transpose.ROTATE_90,),
    }[back]:
        stored = stored.transpose(step)
    data, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    stored.save(data, "PNG", exif=exif)
    assert np.array_equal(np.asarray(seen(data.getvalue())), upright)


@pytest.mark.parametrize(
    ("tiff", "size"),
    [
        (
            tiff_of((0x112, 3, 1, short(6)), (0x11A, 10, 1, struct.pack("<I", 38)), rest=struct.pack("<ii", -1, 0)),
            (4, 8),
        ),
        (tiff_of((0x112, 3, 1, short(6)), (0x11A, 5, 1, struct.pack("<I", 9999))), (4, 8)),
        (tiff_of((0x112, 3, 1, short(6)), (0x8769, 4, 1, struct.pack("<I", 99999))), (4, 8)),
        (tiff_of((0x112, 3, 1, short(0))), (8, 4)),
        (tiff_of((0x112, 3, 1, short(9))), (8, 4)),
        (tiff_of((0x112, 2, 1, b"6\0\0\0")), (8, 4)),
        (b"II*\0", (8, 4)),
        (b"II*\0" + struct.pack("<IH", 8, 900), (8, 4)),
        (b"nonsense" * 9, (8, 4)),
    ],
)
def test_broken_exif_costs_no_pixels(tiff: bytes, size: tuple[int, int]) -> None:
    image = seen(exif_jpeg(tiff))
    assert image.size == size and pixel(image, 1)[0] > 245


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"tEXt", b"Comment\0hello", sound=False),
        chunk(b"gAMA", struct.pack(">I", 45455), sound=False),
        chunk(b"pHYs", b"\0" * 9, sound=False),
        chunk(b"iCCP", b"name\0\0garbage"),
        chunk(b"iCCP", b"name\0\0garbage", sound=False),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 2_000_000)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + b"no zlib"),
        chunk(b"eXIf", b"nonsense"),
        chunk(b"tIME", b"\0"),
    ],
)
def test_broken_chunks_of_metadata_cost_no_pixels(extra: bytes) -> None:
    assert pixel(seen(png(8, 2, b"\xff\0\0" * 8, extra)), 3) == (255, 0, 0)


@pytest.mark.parametrize("marker", [0xE1, 0xE2, 0xED, 0xFE])
def test_random_segments_of_a_jpeg_cost_no_pixels(marker: int) -> None:
    random = Random(marker)
    for start in (
        b"",
        b"Exif\0\0",
        b"ICC_PROFILE\0",
        b"Photoshop 3.0\x008BIM",
        b"MPF\0",
        b"http://ns.adobe.com/xap/1.0/\0",
    ):
        for _ in range(20):
            body = start + random.randbytes(random.randrange(60))
            jpeg = encoded("JPEG", quality=95)
            content = jpeg[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body + jpeg[2:]
            assert pixel(seen(content), 3)[0] > 240


def test_damaged_pixels_are_still_damage() -> None:
    whole = png(8, 2, b"\xff\0\0" * 8, chunk(b"tEXt", b"a\0b", sound=False))
    broken = whole.replace(b"IDAT", b"IDAT\xff", 1)
    for content in (broken, whole[:60], b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1\0", encoded("JPEG")[:40], b""):
        with pytest.raises(DamagedSample):
            seen(content)


@pytest.mark.parametrize("clear", [None, 0])
def test_around_the_first_frame_of_a_gif_is_white(clear: int | None) -> None:
    data, frame = io.BytesIO(), Image.new("P", (4, 4), 1)
    frame.putpalette([0, 0, 0, 255, 0, 0])
    frame.putpixel((0, 0), 0)
    frame.save(data, "GIF", optimize=False, **({} if clear is None else {"transparency": clear}))
    content = bytearray(data.getvalue())
    content[6] = 8  # the screen is twice as wide
    image = seen(bytes(content))
    assert image.size == (8, 4) and pixel(image, 1) == (255, 0, 0) and pixel(image, 6) == WHITE
    assert image.getpixel((0, 0)) == (BLACK if clear is None else WHITE)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_profiles_of_random_bytes_cost_no_pixels(mode: str) -> None:
    random = Random(0)
    for _ in range(60):
        broken = bytearray(SRGB)
        for _ in range(random.randrange(1, 30)):
            broken[random.randrange(20, len(broken))] = random.randrange(256)
        image = seen(encoded(colour=(200, 10, 10) if mode == "RGB" else 90, mode=mode, icc_profile=bytes(broken)))
        assert image.size == (8, 4) and image.mode == "RGB"
