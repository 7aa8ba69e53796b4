"""Layouts: sizes of images, which of them is nearest to a picture, and how the codes of one are told."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tokenizers_vq.layout import (
    RATIO_STEP,
    FixedLayout,
    GridLayout,
    Size,
    bucket_sizes,
    grid_sizes,
    in_rows,
    layout_from_dict,
    nearest_shape,
    nearest_size,
)

BUCKETS = GridLayout(sizes=((6, 10), (7, 9), (8, 8), (9, 7), (10, 6)))
sides = st.integers(1, 12)
sizes_of_a_grid = st.lists(st.tuples(sides, sides), min_size=1, max_size=6, unique=True).map(tuple)


def ratio(size: Size) -> float:
    return size[1] / size[0]


def test_a_fixed_image_is_its_codes_and_two_borders() -> None:
    layout = FixedLayout(rows=3, columns=5)
    assert (layout.num_codes, layout.span, layout.span_of((3, 5)), layout.num_tokens) == (15, 17, 17, 0)
    assert layout.sizes == ((3, 5),)


def test_a_grid_image_has_two_sizes_and_ends_of_rows_beside_its_codes() -> None:
    layout = GridLayout(sizes=((1, 6), (2, 3)))
    assert layout.span_of((1, 6)) == 2 + 2 + 6
    assert layout.span == layout.span_of((2, 3)) == 2 + 2 + 6 + 1
    assert (layout.max_side, layout.num_tokens) == (6, 7)


@given(sizes=sizes_of_a_grid)
def test_the_order_in_which_sizes_are_named_does_not_matter(sizes: tuple[Size, ...]) -> None:
    layout = GridLayout(sizes=sizes)
    assert layout == GridLayout(sizes=sizes[::-1])
    assert layout.span == max(layout.span_of(size) for size in sizes)


@pytest.mark.parametrize("sizes", [(), ((0, 3),), ((2, -1),), ((2, 2), (2, 2))])
def test_a_grid_without_sizes_or_with_impossible_or_equal_ones_is_refused(sizes: tuple[Size, ...]) -> None:
    with pytest.raises(ValueError, match="a grid layout needs different sizes of at least 1 x 1, got"):
        GridLayout(sizes=sizes)


@pytest.mark.parametrize("layout", [FixedLayout(rows=3, columns=5), BUCKETS])
def test_a_layout_comes_back_from_plain_values(layout: FixedLayout | GridLayout) -> None:
    values = {**vars(layout), "sizes": [list(size) for size in layout.sizes]}
    if isinstance(layout, FixedLayout):
        del values["sizes"]
    assert layout_from_dict(values) == layout


def test_a_layout_without_a_kind_is_the_fixed_one() -> None:
    assert layout_from_dict({"rows": 2, "columns": 3}) == FixedLayout(rows=2, columns=3)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (480, 640, (7, 9)),
        (640, 480, (9, 7)),
        (100, 100, (8, 8)),
        (1080, 1920, (6, 10)),
        (1, 900, (6, 10)),
        (900, 1, (10, 6)),
        (1000, 1130, (8, 8)),
        (1000, 1140, (7, 9)),
    ],
)
def test_a_picture_takes_the_size_of_its_shape(height: int, width: int, size: Size) -> None:
    assert nearest_size(BUCKETS, height, width) == size
    assert nearest_size(FixedLayout(rows=4, columns=4), height, width) == (4, 4)


@given(sizes=sizes_of_a_grid, height=st.integers(1, 2000), width=st.integers(1, 2000))
def test_no_size_is_nearer_to_a_picture_than_the_one_it_takes(sizes: tuple[Size, ...], height: int, width: int) -> None:
    def distance(size: Size) -> float:
        return abs(math.log(ratio(size)) - math.log(width / height))

    found = nearest_size(GridLayout(sizes=sizes), height, width)
    assert distance(found) <= min(map(distance, sizes)) + 1e-9


@pytest.mark.slow
@given(sizes=sizes_of_a_grid, scale=st.integers(1, 40), data=st.data())
def test_a_picture_that_has_the_shape_of_a_size_takes_it_in_codes_and_in_pixels(
    sizes: tuple[Size, ...], scale: int, data: st.DataObject
) -> None:
    rows, columns = data.draw(st.sampled_from(sizes))
    pixels = [(8 * r, 8 * c) for r, c in sizes]
    for found in (
        nearest_size(GridLayout(sizes=sizes), rows * scale, columns * scale),
        nearest_shape(pixels, rows * scale, columns * scale),
    ):
        assert found[0] * columns == found[1] * rows


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (-1, 5)])
def test_a_picture_without_extent_has_no_nearest_size(rows: int, columns: int) -> None:
    with pytest.raises(ValueError, match=f"sides above 0, got {rows} x {columns}"):
        nearest_size(BUCKETS, rows, columns)


@given(area=st.integers(1, 400), longest=st.floats(1, 6))
@example(area=190, longest=1.9)
def test_grid_sizes_are_the_widest_within_area_and_ratio(area: int, longest: float) -> None:
    found = grid_sizes(area, longest)
    every = {(r, c) for r in range(1, area + 1) for c in range(1, area + 1) if r * c <= area < r * (c + 1)}
    assert set(found) == {size for size in every if max(size) / min(size) <= longest}
    assert list(found) == sorted(found)


@pytest.mark.parametrize(("area", "longest"), [(0, 2.0), (64, 0.5), (-4, 1.0)])
def test_an_area_or_ratio_below_one_has_no_sizes(area: int, longest: float) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {area} and {longest}"):
        grid_sizes(area, longest)


def test_buckets_are_few_and_close_to_the_shapes_of_photographs() -> None:
    assert bucket_sizes(8, 2) == BUCKETS.sizes
    wide = [(24, 42), (26, 39), (28, 36), (30, 34), (32, 32)]
    assert bucket_sizes(32, 2) == (*wide, *((columns, rows) for rows, columns in reversed(wide[:-1])))
    assert len(bucket_sizes(128, 2)) <= 15


@given(side=st.integers(1, 80), longest=st.floats(1, 6))
def test_buckets_are_as_tall_as_wide_apart_in_shape_and_about_as_large_as_the_square(side: int, longest: float) -> None:
    assume(any(ratio(size) >= RATIO_STEP for size in grid_sizes(side**2, longest)))
    sizes = bucket_sizes(side, longest)
    assert (side, side) in sizes and set(sizes) == {(columns, rows) for rows, columns in sizes}
    ratios = [ratio(size) for size in sizes]
    assert all(a / b >= RATIO_STEP * (1 - 1e-9) for a, b in itertools.pairwise(ratios))
    assert 1 < max(ratios) <= longest
    assert all(side**2 - rows < rows * columns <= side**2 for rows, columns in sizes if rows <= columns)


@pytest.mark.parametrize(("side", "longest"), [(2, 3.9), (8, 1.2), (1, 5.0)])
def test_a_ratio_that_only_the_square_has_is_refused(side: int, longest: float) -> None:
    with pytest.raises(
        ValueError, match=f"{side} x {side} codes, only the square has sides in a ratio up to {longest}"
    ):
        bucket_sizes(side, longest)


def test_codes_are_cut_into_rows_and_another_number_of_them_is_refused() -> None:
    assert in_rows([1, 2, 3, 4, 5, 6], (2, 3)) == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(ValueError, match="an image of 2 x 3 has 6 codes, got 5"):
        in_rows([1, 2, 3, 4, 5], (2, 3))
