"""How the codes of an image lie in a sequence.

    fixed   <boi> codes in reading order <eoi>                                    (Chameleon: every image has one size)
    grid    <boi> <rows> <columns> row <eol> row <eol> ... row <eoi>              (Lumina-mGPT, Emu3.5: several sizes)

The tokens of a grid beside its codes (row end, numbers of rows and columns) have ids between text and codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers_vq.field_types import from_plain

Size = tuple[int, int]
"""Rows and columns of codes."""
RATIO_STEP = 1.1
"""Buckets lie at least this far from one another in aspect ratio; nearer ones would hardly spare a picture's edges."""


@dataclass(frozen=True, kw_only=True)
class FixedLayout:
    """Chameleon's image span: boi, exactly `rows * columns` codes in reading order, eoi."""

    rows: int
    columns: int
    kind: Literal["fixed"] = "fixed"

    @property
    def num_codes(self) -> int:
        """Codes of one image."""
        return self.rows * self.columns

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The one size there is."""
        return ((self.rows, self.columns),)

    @property
    def num_tokens(self) -> int:
        """Ids that the layout needs beside the codes."""
        return 0

    @property
    def span(self) -> int:
        """Tokens of the largest image with its boi and eoi."""
        return self.num_codes + 2

    def span_of(self, size: Size) -> int:
        """Tokens of an image of this size with its boi and eoi."""
        return size[0] * size[1] + 2


@dataclass(frozen=True, kw_only=True)
class GridLayout:
    """Images of several sizes, which two tokens after boi state; rows end with eol, the last one with eoi.

    Emu3.5's choice: the end of the image stands in for the last row's end (Emu3 writes both). `sizes` are the (rows,
    columns) that occur; an image of another size does not exist in this space.
    """

    sizes: tuple[Size, ...]
    kind: Literal["grid"] = "grid"

    def __post_init__(self) -> None:
        sizes = tuple((int(rows), int(columns)) for rows, columns in self.sizes)
        if not sizes or min(min(size) for size in sizes) < 1 or len(set(sizes)) != len(sizes):
            raise ValueError(f"a grid layout needs different sizes of at least 1 x 1, got {self.sizes}")
        object.__setattr__(self, "sizes", tuple(sorted(sizes)))

    @property
    def max_side(self) -> int:
        """The greatest number of rows or columns."""
        return max(max(size) for size in self.sizes)

    @property
    def num_tokens(self) -> int:
        """Ids that the layout needs beside the codes: eol, and a number for each length of a side."""
        return 1 + self.max_side

    @property
    def span(self) -> int:
        """Tokens of the largest image with its boi and eoi."""
        return max(self.span_of(size) for size in self.sizes)

    def span_of(self, size: Size) -> int:
        """Tokens of an image of this size with its boi and eoi."""
        rows, columns = size
        return rows * (columns + 1) + 3


Layout = FixedLayout | GridLayout
LAYOUTS: dict[str, type[Any]] = {"fixed": FixedLayout, "grid": GridLayout}


def layout_from_dict(values: dict[str, Any]) -> Layout:
    """The layout of its plain values. Raises KeyError, TypeError or ValueError for anything else."""
    fields = dict(values)
    return from_plain(LAYOUTS[fields.get("kind", "fixed")], fields)


def nearest_size(layout: Layout, rows: float, columns: float) -> Size:
    """The size whose shape is nearest to a picture's, in the logarithm of the aspect ratio; of equals the first.

    Raises ValueError for a side that is not above 0.
    """
    return nearest_shape(layout.sizes, rows, columns)


def nearest_shape(sizes: Sequence[Size], rows: float, columns: float) -> Size:
    """As `nearest_size`, of sizes in any unit, pixels say."""
    if min(rows, columns) <= 0:
        raise ValueError(f"a picture has sides above 0, got {rows} x {columns}")

    def distance(size: Size) -> float:
        ratio = (size[0] * columns) / (size[1] * rows)
        return max(ratio, 1 / ratio)

    return min(sizes, key=distance)


def grid_sizes(area: int, max_ratio: float) -> tuple[Size, ...]:
    """Sizes of about `area` codes with sides in a ratio of at most `max_ratio`: the widest that fits each height.

    Raises ValueError where there is none.
    """
    if area < 1 or max_ratio < 1:
        raise ValueError(f"sizes need an area and a ratio of at least 1, got {area} and {max_ratio}")
    found = [(rows, area // rows) for rows in range(1, area + 1)]
    return tuple((r, c) for r, c in found if c and max(r / c, c / r) <= max_ratio)


def bucket_sizes(side: int, max_ratio: float) -> tuple[Size, ...]:
    """The square and, for each that is wide, one that is as tall; of `grid_sizes` those a `RATIO_STEP` apart.

    How many there are depends on the ratio, hardly on the area: 9 for a ratio of 2. Raises ValueError where only the
    square is left.
    """
    chosen = [(side, side)]
    for rows, columns in reversed(grid_sizes(side**2, max_ratio)):
        last_rows, last_columns = chosen[-1]
        if rows < columns and columns / rows >= RATIO_STEP * last_columns / last_rows:
            chosen.append((rows, columns))
    if len(chosen) == 1:
        found = f"of about {side} x {side} codes, only the square has sides in a ratio up to {max_ratio}"
        raise ValueError(f"{found}; allow a longer one")
    return tuple(sorted({size for rows, columns in chosen for size in ((rows, columns), (columns, rows))}))


def in_rows(codes: Sequence[int], size: Size) -> list[list[int]]:
    """Codes in reading order -> rows. Raises ValueError where their number is not rows x columns."""
    rows, columns = size
    if len(codes) != rows * columns:
        raise ValueError(f"an image of {rows} x {columns} has {rows * columns} codes, got {len(codes)}")
    return [list(codes[row * columns : (row + 1) * columns]) for row in range(rows)]
