"""Image policy: padding keeps everything, cropping fills the frame, augmentation keeps what a picture shows."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data_pipelines.images import SMALLEST_PLACED, ImagePolicy, augment, fit_square, to_image, to_tensor
from tests.oracles.pictures import noise

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90)


def wide() -> Image.Image:
    """Green ends, red middle, 64x16: only the middle quarter survives a centre crop."""
    image = Image.new("RGB", (64, 16), RED)
    image.paste(GREEN, (0, 0, 20, 16))
    image.paste(GREEN, (44, 0, 64, 16))
    return image


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()}


def test_padding_keeps_all_content_in_the_middle() -> None:
    padded = fit_square(wide(), 32, "pad")
    assert padded.size == (32, 32)
    inner = padded.crop((0, 12, 32, 20))
    assert np.array_equal(np.asarray(inner), np.asarray(wide().resize((32, 8), Image.Resampling.BICUBIC)))


def test_padding_continues_the_colour_of_the_border() -> None:
    image = Image.new("RGB", (40, 20), GREY)
    image.paste(RED, (10, 5, 30, 15))
    padded = fit_square(image, 20, "pad")
    outside = np.concatenate([np.asarray(padded)[:5], np.asarray(padded)[15:]])
    assert {tuple(pixel) for pixel in outside.reshape(-1, 3).tolist()} == {GREY}


def test_cropping_fills_the_frame_with_the_middle() -> None:
    assert colours(fit_square(wide(), 16, "crop")) == {RED}


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_picture_of_the_right_size_is_left_as_it_is(fit: str) -> None:
    image = noise(16, 16)
    assert fit_square(image, 16, fit).tobytes() == image.tobytes()  # pyright: ignore[reportArgumentType]


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 1500), height=st.integers(1, 1500), fit=st.sampled_from(["pad", "crop"]))
def test_pictures_of_any_size_and_aspect_become_squares(width: int, height: int, fit: str) -> None:
    image = fit_square(Image.new("RGB", (width, height), BLUE), 16, fit)  # pyright: ignore[reportArgumentType]
    assert image.size == (16, 16) and colours(image) == {BLUE}


def test_shown_pictures_are_padded_and_drawn_ones_cropped() -> None:
    policy = ImagePolicy(size=16)
    assert GREEN in colours(policy.apply(wide(), "image"))
    assert colours(policy.apply(wide(), "answer")) == {RED}


def test_flip_mirrors_left_and_right_half_of_the_time() -> None:
    image = noise(8, 8)
    variants = [augment(image, ("flip",), Random(seed)).tobytes() for seed in range(60)]
    assert set(variants) == {image.tobytes(), ImageOps.mirror(image).tobytes()}
    assert 15 < sum(variant == image.tobytes() for variant in variants) < 45


def test_place_keeps_the_whole_object_and_the_ground_and_moves_it() -> None:
    image = Image.new("RGB", (40, 40), GREY)
    image.paste(RED, (10, 10, 30, 30))
    corners, sides = set(), set()
    for seed in range(40):
        placed = augment(image, ("place",), Random(seed))
        assert placed.size == (40, 40) and placed.getpixel((0, 0)) == GREY
        reddish = np.argwhere(np.asarray(placed)[:, :, 0] > 200)
        (top, left), (bottom, right) = reddish.min(0), reddish.max(0)
        corners.add((int(left), int(top)))
        sides.add(int(right - left) + 1)
        assert abs((right - left) - (bottom - top)) <= 1, "its form stays"
    assert len(corners) > 20
    assert 20 * SMALLEST_PLACED - 2 <= min(sides) < max(sides) <= 20


def test_without_kinds_nothing_is_changed_and_one_seed_gives_one_picture() -> None:
    image = noise(16, 16)
    assert augment(image, (), Random(0)).tobytes() == image.tobytes()
    once, twice = (augment(image, ("flip", "place"), Random(3)).tobytes() for _ in range(2))
    assert once == twice != image.tobytes()


@settings(deadline=None)
@given(width=st.integers(1, 9), height=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_picture_comes_back_from_its_tensor_byte_for_byte(width: int, height: int, seed: int) -> None:
    image = noise(width, height, seed=seed)
    tensor = to_tensor(image)
    assert tensor.shape == (3, height, width) and tensor.dtype == torch.float32
    back = to_image(tensor)
    assert back.size == image.size and back.tobytes() == image.tobytes()


def test_black_is_minus_one_white_is_one_and_what_lies_outside_is_cut() -> None:
    assert to_tensor(Image.new("RGB", (1, 1), "black")).unique().tolist() == [-1]
    assert to_tensor(Image.new("RGB", (1, 1), "white")).unique().tolist() == [1]
    assert colours(to_image(torch.tensor([2.0, -2.0, 0.0]).view(3, 1, 1))) == {(255, 0, 128)}
