"""Image policy: padding keeps everything, cropping fills the frame, augmentation keeps what a picture shows."""

from __future__ import annotations

import json
from dataclasses import asdict
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data_pipelines.images import (
    MIN_PLACED_SIDE,
    Fit,
    ImagePolicy,
    augment,
    fit_to,
    stackable,
    to_image,
    to_tensor,
)
from tests.oracles.pictures import SIZE, noise, tiny_tokenizer
from tokenizers_vq.layout import GridLayout

fits: st.SearchStrategy[Fit] = st.sampled_from(["pad", "crop"])
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
    padded = fit_to(wide(), (32, 32), "pad")
    assert padded.size == (32, 32)
    inner = padded.crop((0, 12, 32, 20))
    assert np.array_equal(np.asarray(inner), np.asarray(wide().resize((32, 8), Image.Resampling.BICUBIC)))


def test_padding_continues_the_colour_of_the_border() -> None:
    image = Image.new("RGB", (40, 20), GREY)
    image.paste(RED, (10, 5, 30, 15))
    padded = fit_to(image, (20, 20), "pad")
    outside = np.concatenate([np.asarray(padded)[:5], np.asarray(padded)[15:]])
    assert {tuple(pixel) for pixel in outside.reshape(-1, 3).tolist()} == {GREY}


def test_cropping_fills_the_frame_with_the_middle() -> None:
    assert colours(fit_to(wide(), (16, 16), "crop")) == {RED}


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_picture_of_the_right_size_is_left_as_it_is(fit: Fit) -> None:
    for sides in ((16, 16), (24, 16)):
        image = noise(*sides)
        assert fit_to(image, (16, sides[0]), fit).tobytes() == image.tobytes()


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 1500), height=st.integers(1, 1500), fit=fits)
def test_pictures_of_any_size_and_aspect_become_squares(width: int, height: int, fit: Fit) -> None:
    image = fit_to(Image.new("RGB", (width, height), BLUE), (16, 16), fit)
    assert image.size == (16, 16) and colours(image) == {BLUE}


def fit_square_slowly(image: Image.Image, size: int, fit: str) -> Image.Image:
    """By the longest side, pasted on a ground of the colour most of whose border it is."""
    if fit == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    width, height = (max(1, round(side / max(image.size) * size)) for side in image.size)
    inner = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    border = np.concatenate([inner[0], inner[-1], inner[:, 0], inner[:, -1]])
    canvas = np.empty((size, size, 3), dtype=np.uint8)
    canvas[:] = np.median(border, axis=0).astype(int)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = inner
    return Image.fromarray(canvas)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 40), fit=fits)
def test_squares_are_what_a_slow_and_obvious_fit_gives(width: int, height: int, size: int, fit: Fit) -> None:
    image = noise(width, height)
    expected = image if width == height == size else fit_square_slowly(image, size, fit)
    assert fit_to(image, (size, size), fit).tobytes() == expected.tobytes()


@settings(max_examples=60, deadline=None)
@given(sides=st.tuples(*[st.integers(1, 400)] * 2), size=st.tuples(*[st.integers(1, 40)] * 2), fit=fits)
def test_pictures_of_any_size_and_aspect_become_any_rectangle(
    sides: tuple[int, int], size: tuple[int, int], fit: Fit
) -> None:
    image = fit_to(Image.new("RGB", sides, BLUE), size, fit)
    assert image.size == (size[1], size[0]) and colours(image) == {BLUE}


@pytest.mark.parametrize(("size", "inside"), [((20, 24), (0, 7, 24, 13)), ((8, 48), (8, 0, 40, 8))])
def test_padding_to_a_rectangle_keeps_form_and_content_in_the_middle(
    size: tuple[int, int], inside: tuple[int, int, int, int]
) -> None:
    padded = fit_to(wide(), size, "pad")
    left, top, right, bottom = inside
    expected = wide().resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(padded.crop(inside)), np.asarray(expected))


def test_cropping_to_a_rectangle_loses_less_where_it_is_more_alike() -> None:
    assert colours(fit_to(wide(), (16, 24), "crop")) == {RED}
    assert GREEN in colours(fit_to(wide(), (16, 40), "crop"))


def test_a_policy_with_sizes_gives_each_picture_the_one_of_its_shape() -> None:
    policy = ImagePolicy(size=16, sizes=((24, 8), (16, 16), (8, 24)))
    for sides, size in (((64, 16), (8, 24)), ((16, 64), (24, 8)), ((50, 45), (16, 16))):
        for role in ("image", "answer"):
            picture = policy.apply(Image.new("RGB", sides, BLUE), role)
            assert (picture.height, picture.width) == size == policy.size_of(Image.new("RGB", sides))
    assert ImagePolicy(size=16).size_of(wide()) == (16, 16)


def test_the_policy_of_a_layout_has_its_sizes_in_pixels() -> None:
    tokenizer = tiny_tokenizer()
    assert ImagePolicy.of(tokenizer, tokenizer.layout) == ImagePolicy(size=SIZE)
    grid = GridLayout(sizes=((1, 4), (2, 2), (4, 1)))
    assert ImagePolicy.of(tokenizer, grid) == ImagePolicy(size=SIZE, sizes=((8, 32), (16, 16), (32, 8)))


@pytest.mark.parametrize("policy", [ImagePolicy(size=16), ImagePolicy(size=16, shown="crop", sizes=((8, 24), (24, 8)))])
def test_a_policy_comes_back_from_json_and_one_that_was_written_without_sizes_too(policy: ImagePolicy) -> None:
    assert ImagePolicy(**json.loads(json.dumps(asdict(policy)))) == policy
    assert ImagePolicy(**json.loads('{"size": 16, "shown": "pad", "drawn": "crop"}')) == ImagePolicy(size=16)


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 16, "sizes": ((8, 0),)}])
def test_a_policy_of_pictures_without_pixels_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pictures have at least one pixel, got size"):
        ImagePolicy(**options)


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
    assert 20 * MIN_PLACED_SIDE - 2 <= min(sides) < max(sides) <= 20


@pytest.mark.parametrize("sides", [(60, 30), (20, 50)])
def test_augmented_rectangles_keep_their_sides_and_the_form_of_what_they_show(sides: tuple[int, int]) -> None:
    image = Image.new("RGB", sides, GREY)
    image.paste(RED, (5, 5, 15, 15))
    for seed in range(20):
        placed = augment(image, ("flip", "place"), Random(seed))
        assert placed.size == sides and placed.getpixel((0, 0)) == GREY
        reddish = np.argwhere(np.asarray(placed)[:, :, 0] > 200)
        (top, left), (bottom, right) = reddish.min(0), reddish.max(0)
        assert abs((right - left) - (bottom - top)) <= 1 and 10 * MIN_PLACED_SIDE - 2 <= right - left + 1 <= 10


@given(kinds=st.lists(st.integers(1, 3), max_size=12), most=st.integers(1, 4))
def test_pictures_that_are_stacked_are_alike_few_and_each_is_there_once(kinds: list[int], most: int) -> None:
    pictures = [torch.zeros(3, 8, 8 * kind) for kind in kinds]
    groups = list(stackable(pictures, most))
    assert sorted(index for group in groups for index in group) == list(range(len(kinds)))
    assert all(len({kinds[index] for index in group}) == 1 and len(group) <= most for group in groups)
    if len(set(kinds)) == 1:
        assert groups == [list(range(len(kinds)))[start : start + most] for start in range(0, len(kinds), most)]


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
