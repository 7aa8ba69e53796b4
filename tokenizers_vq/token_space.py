"""The token space: which id means what. A pure fact, the same in shards, checkpoints and exports."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tokenizers_vq.field_types import from_plain
from tokenizers_vq.layout import FixedLayout, GridLayout, Layout, Size, in_rows, layout_from_dict

__all__ = ["FixedLayout", "GridLayout", "ImageSpan", "Modality", "Specials", "TokenSpace", "TokenSpaceMismatch"]

SPECIAL_NAMES = ("pad", "bos", "eos", "boi", "eoi", "sep", "null")
"""Special tokens in id order: they take the first ids of the text range, so text ids never move."""

SPECIAL_STRINGS = tuple(f"<{name}>" for name in SPECIAL_NAMES)

TOKEN_SPACE_FILE = "token_space.json"


class Modality(IntEnum):
    """What a token is."""

    PADDING = -1
    TEXT = 0
    IMAGE = 1


class TokenSpaceMismatch(ValueError):
    """Two artefacts with different token spaces were opened together."""


@dataclass(frozen=True, kw_only=True)
class Specials:
    """Ids of the special tokens. Text that a user typed never becomes one of them."""

    pad: int = 0
    bos: int = 1
    eos: int = 2
    boi: int = 3
    eoi: int = 4
    sep: int = 5
    null: int = 6


class ImageSpan(NamedTuple):
    """A well-formed image found in a sequence: its size, the ids of its codes, and the index after its eoi."""

    size: Size
    ids: list[int]
    end: int


@dataclass(frozen=True, kw_only=True)
class TokenSpace:
    """Text ids [0, text_size), specials among them; then the layout's own ids, if it has any; then the image codes at
    [image_offset, image_offset + codebook_size).

    `text_hash` is the SHA-256 of the text tokenizer's file, `image_hash` that of the image tokenizer's weights.
    `also_end` are text ids that end an answer as eos does, such as the end of a turn of an imported chat model; data
    of either kind are the same token space.
    """

    text_size: int
    text_hash: str
    codebook_size: int
    image_hash: str
    layout: Layout
    specials: Specials = field(default_factory=Specials)
    also_end: tuple[int, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.text_size < len(SPECIAL_NAMES) + 1 or self.codebook_size < 2:
            raise ValueError(f"a token space needs text and image ids, got {self}")
        if not all(0 <= token < self.text_size for token in self.also_end):
            raise ValueError(f"ids that end an answer are text ids below {self.text_size}, got {self.also_end}")

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end an answer, eos first."""
        return (self.specials.eos, *self.also_end)

    @property
    def image_offset(self) -> int:
        """The id of image code 0: the text tokenizer's true size and the layout's own ids."""
        return self.text_size + self.layout.num_tokens

    @property
    def vocab_size(self) -> int:
        """Ids in all."""
        return self.image_offset + self.codebook_size

    @property
    def eol(self) -> int:
        """The id that ends a row of a grid."""
        return self.text_size

    def side(self, length: int) -> int:
        """The id that states a number of rows or columns of a grid."""
        return self.text_size + length

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all fields."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_image_ids(self, codes: Tensor) -> Tensor:
        """Codes of the image tokenizer -> ids."""
        return codes + self.image_offset

    def to_codes(self, ids: Tensor) -> Tensor:
        """Ids -> codes of the image tokenizer. Raises ValueError for an id that is no image code."""
        codes = ids - self.image_offset
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.codebook_size):
            bad = ids[(codes < 0) | (codes >= self.codebook_size)].flatten()[0].item()
            raise ValueError(f"id {bad} is not an image code: those are {self.image_offset} to {self.vocab_size - 1}")
        return codes

    def image_body(self, ids: Sequence[int], size: Size) -> list[int]:
        """Ids of an image's codes in reading order -> what stands between boi and eoi. Raises ValueError for a size
        that the layout does not have or another number of codes."""
        if size not in self.layout.sizes:
            raise ValueError(f"an image of {size[0]} x {size[1]} codes does not exist in the {self.layout.kind} layout")
        rows = in_rows(ids, size)
        if isinstance(self.layout, FixedLayout):
            return [code for row in rows for code in row]
        body = [self.side(size[0]), self.side(size[1])]
        for row in rows:
            body += [*row, self.eol]
        return body[:-1]

    def read_image(self, ids: Sequence[int], start: int) -> ImageSpan | None:
        """The image whose boi stands at `start`; None where what follows is not a well-formed image."""
        size = self._size(ids, start)
        if size is None or not 0 <= start < len(ids) or ids[start] != self.specials.boi:
            return None
        end = start + self.layout.span_of(size)
        body = list(ids[start + 1 : end - 1])
        codes = [token for token in body if token >= self.image_offset]
        whole = end <= len(ids) and ids[end - 1] == self.specials.eoi and len(codes) == size[0] * size[1]
        if not whole or max(codes) >= self.vocab_size or self.image_body(codes, size) != body:
            return None
        return ImageSpan(size, codes, end)

    def _size(self, ids: Sequence[int], start: int) -> Size | None:
        if isinstance(self.layout, FixedLayout):
            return self.layout.sizes[0]
        if start < 0 or len(ids) < start + 3:
            return None
        size = (ids[start + 1] - self.text_size, ids[start + 2] - self.text_size)
        return size if size in self.layout.sizes else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `also_end` where there is any."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name != "also_end" or value}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TokenSpace:
        """The inverse of `to_dict`. Raises ValueError for anything else."""
        try:
            parts = {"layout": layout_from_dict(values["layout"]), "specials": from_plain(Specials, values["specials"])}
            given = {**values, **parts, "also_end": tuple(values.get("also_end", ()))}
            return from_plain(cls, given)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a token space: {error}") from error

    def save(self, folder: Path) -> None:
        """Write `token_space.json` into a folder."""
        (folder / TOKEN_SPACE_FILE).write_text(
            json.dumps({**self.to_dict(), "fingerprint": self.fingerprint}, indent=2)
        )

    @classmethod
    def open(cls, folder: Path) -> TokenSpace:
        """Read `token_space.json` from a folder. Raises ValueError where it is missing or does not match itself."""
        path = folder / TOKEN_SPACE_FILE
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        try:
            values = dict(json.loads(path.read_text()))
            fingerprint = values.pop("fingerprint", None)
            space = cls.from_dict(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
        if fingerprint != space.fingerprint:
            raise ValueError(f"{path} was changed by hand: its fingerprint does not match its fields")
        return space

    def check_same(self, other: TokenSpace, mine: str, theirs: str) -> None:
        """Raise TokenSpaceMismatch, naming both artefacts and the first field that differs."""
        for item in (item for item in dataclasses.fields(self) if item.compare):
            a, b = getattr(self, item.name), getattr(other, item.name)
            if a != b:
                raise TokenSpaceMismatch(f"{mine} and {theirs} have different token spaces: {item.name} is {a} and {b}")
