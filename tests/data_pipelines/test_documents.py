"""Documents: what a segment refuses, and pictures of every mode as RGB."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines import documents as documents_module
from data_pipelines.documents import DamagedSample, Document, ImageSegment, TextSegment, to_rgb


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("text", ["", "  \n"])
def test_text_without_content_is_damage(text: str) -> None:
    with pytest.raises(DamagedSample, match="empty question"):
        TextSegment(text=text, role="question")


def test_roles_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="text role must be one of"):
        TextSegment(text="a", role="image")
    with pytest.raises(ValueError, match="image role must be one of"):
        ImageSegment(source=b"", role="caption")


def test_a_document_without_segments_is_damage_with_its_name() -> None:
    with pytest.raises(DamagedSample, match="train-1: a document without segments"):
        Document(key="train-1", segments=())


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]
)
def test_white_and_black_of_any_mode_stay_white_and_black(mode: str) -> None:
    grey = Image.fromarray(np.array([[255, 0]], dtype=np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.array([[65535, 0]], dtype=np.uint16))
    elif mode in ("PA", "RGBa"):
        image = grey.convert("RGBA").convert(mode)
    else:
        image = grey.convert("RGB").convert(mode) if mode != "P" else grey.convert("RGB").quantize(2)
    assert to_rgb(image).mode == "RGB"
    assert [to_rgb(image).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 257, 32896, 65535], np.uint16, [0, 1, 128, 255]),
        ([0, 257, 514, 771], np.uint16, [0, 1, 2, 3]),
        ([-5, 0, 100, 255], np.int32, [0, 0, 100, 255]),
        ([0, 257, 32896, 65535], np.int32, [0, 1, 128, 255]),
        ([0, 50_000, 100_000, 200_000], np.int32, [0, 64, 128, 255]),
        ([-1.0, 0.0, 0.5, 1.0], np.float32, [0, 0, 128, 255]),
        ([0.0, 1.0, 128.0, 255.0], np.float32, [0, 1, 128, 255]),
        ([np.nan, 0.0, 0.0, 1.0], np.float32, [0, 0, 0, 255]),
    ],
)
def test_deep_grey_is_scaled_and_not_cut(values: list[float], dtype: type, expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], dtype=dtype))
    assert np.asarray(to_rgb(image))[0].tolist() == [[grey] * 3 for grey in expected]


def test_a_sixteen_bit_png_keeps_its_greys() -> None:
    values = np.linspace(0, 65535, 16, dtype=np.uint16).reshape(4, 4)
    opened = np.asarray(ImageSegment(source=encoded(Image.fromarray(values))).open())
    np.testing.assert_array_equal(opened[..., 0], np.rint(values / 257))


def test_transparency_is_laid_over_white() -> None:
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert to_rgb(half).getpixel((0, 0)) == pytest.approx((255, 127, 127), abs=1)
    assert to_rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0)) == (255, 255, 255)
    keyed = Image.new("RGB", (1, 1), (1, 2, 3))
    opened = ImageSegment(source=encoded(keyed, transparency=(1, 2, 3))).open()
    assert opened.getpixel((0, 0)) == (255, 255, 255)


def test_pictures_stand_upright_as_their_exif_says() -> None:
    image = Image.new("RGB", (20, 10), "black")
    image.paste("white", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise when shown
    opened = ImageSegment(source=encoded(image, exif=exif)).open()
    assert opened.size == (10, 20)
    assert opened.getpixel((5, 2)) == (255, 255, 255) and opened.getpixel((5, 17)) == (0, 0, 0)


def test_a_path_bytes_and_a_picture_open_to_the_same_pixels(tmp_path: Path) -> None:
    image = Image.effect_noise((8, 6), 50).convert("RGB")
    (tmp_path / "a.png").write_bytes(encoded(image))
    for source in (tmp_path / "a.png", encoded(image), image):
        np.testing.assert_array_equal(np.asarray(ImageSegment(source=source).open()), np.asarray(image))


def test_opening_leaves_the_given_picture_as_it_was() -> None:
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    ImageSegment(source=image).open()
    assert image.mode == "RGBA" and image.getpixel((0, 0)) == (0, 0, 0, 0)


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedSample, match=r"none\.png: cannot be read as an image"):
        ImageSegment(source=tmp_path / "none.png").open()
    with pytest.raises(DamagedSample, match=r"image: cannot be read as an image \(unknown format\)"):
        ImageSegment(source=b"no picture").open()


def test_damaged_bytes_are_damage_whatever_the_decoder_raises() -> None:
    whole = encoded(Image.effect_noise((16, 16), 50))
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[int(rng.integers(8, len(whole)))] ^= int(rng.integers(1, 256))
        try:
            ImageSegment(source=bytes(damaged)).open()
        except DamagedSample as error:
            assert str(error).startswith("image: ")


def test_huge_pictures_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "MAX_IMAGE_PIXELS", 99)
    with pytest.raises(DamagedSample, match="10x10 pixels, over 99"):
        ImageSegment(source=encoded(Image.new("L", (10, 10)))).open()
