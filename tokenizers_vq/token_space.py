"""The token space: which id means what. A pure fact, the same in shards, checkpoints and exports."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

SPECIAL_NAMES = ("pad", "bos", "eos", "boi", "eoi", "sep", "null")
"""Special tokens in id order: they take the first ids of the text range, so text ids never move."""

SPECIAL_STRINGS = tuple(f"<{name}>" for name in SPECIAL_NAMES)

FILE_NAME = "token_space.json"


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
    def span(self) -> int:
        """Tokens of one image with its boi and eoi."""
        return self.num_codes + 2


@dataclass(frozen=True, kw_only=True)
class TokenSpace:
    """Text ids [0, text_size), specials among them; image codes at [image_offset, image_offset + codebook_size).

    `text_hash` is the SHA-256 of the text tokenizer's file, `image_hash` that of the image tokenizer's weights.
    """

    text_size: int
    text_hash: str
    codebook_size: int
    image_hash: str
    layout: FixedLayout
    specials: Specials = field(default_factory=Specials)

    def __post_init__(self) -> None:
        if self.text_size < len(SPECIAL_NAMES) + 1 or self.codebook_size < 2:
            raise ValueError(f"a token space needs text and image ids, got {self}")

    @property
    def image_offset(self) -> int:
        """The id of image code 0: the text tokenizer's true size."""
        return self.text_size

    @property
    def vocab_size(self) -> int:
        """Ids in all."""
        return self.text_size + self.codebook_size

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TokenSpace:
        """The inverse of `to_dict`. Raises ValueError for anything else."""
        try:
            parts = {"layout": FixedLayout(**values["layout"]), "specials": Specials(**values["specials"])}
            return cls(**{**values, **parts})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a token space: {error}") from error

    def save(self, folder: Path) -> None:
        """Write `token_space.json` into a folder."""
        (folder / FILE_NAME).write_text(json.dumps({**self.to_dict(), "fingerprint": self.fingerprint}, indent=2))

    @classmethod
    def open(cls, folder: Path) -> TokenSpace:
        """Read `token_space.json` from a folder. Raises ValueError where it is missing or does not match itself."""
        path = folder / FILE_NAME
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
        for item in dataclasses.fields(self):
            a, b = getattr(self, item.name), getattr(other, item.name)
            if a != b:
                raise TokenSpaceMismatch(f"{mine} and {theirs} have different token spaces: {item.name} is {a} and {b}")
