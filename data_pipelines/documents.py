"""Documents: what every source yields, before any token exists."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from PIL import Image, UnidentifiedImageError

from data_pipelines.pictures import TooManyPixels, decode, to_rgb

MAX_IMAGE_PIXELS = 64_000_000
"""Larger pictures are refused as decompression bombs."""

TEXT_ROLES = ("text", "caption", "request", "question", "answer")
IMAGE_ROLES = ("image", "answer")
THINKING = "think, then draw: "
"""How a request starts that wants a plan in words before the picture (unimodal/generation/thinking.py)."""


class DamagedSample(ValueError):
    """One sample of a source cannot be used; the message names it and says why."""


@dataclass(frozen=True, kw_only=True)
class TextSegment:
    """A run of text with its role: `text`, `caption`, `request`, `question` or `answer`."""

    text: str
    role: str = "text"

    def __post_init__(self) -> None:
        if self.role not in TEXT_ROLES:
            raise ValueError(f"text role must be one of {TEXT_ROLES}, got {self.role!r}")
        if not is_visible(self.text):
            raise DamagedSample(f"empty {self.role}")


@dataclass(frozen=True, kw_only=True)
class ImageSegment:
    """A picture, opened only when asked for: a path, encoded bytes, or a PIL image.

    `image` is a picture the reader is shown; `answer` is one that was drawn in reply to a request.
    """

    source: Path | bytes | Image.Image
    role: str = "image"

    def __post_init__(self) -> None:
        if self.role not in IMAGE_ROLES:
            raise ValueError(f"image role must be one of {IMAGE_ROLES}, got {self.role!r}")

    def open(self) -> Image.Image:
        """The picture in RGB, alpha laid over white. Raises DamagedSample when it cannot be read."""
        try:
            return to_rgb(self._decode())
        except DamagedSample:
            raise
        except UnidentifiedImageError as error:
            raise DamagedSample(f"{self.name}: cannot be read as an image (unknown format)") from error
        except Exception as error:  # decoders raise errors of every kind on damaged bytes
            raise DamagedSample(f"{self.name}: cannot be read as an image ({error})") from error

    @property
    def name(self) -> str:
        """What to call this picture in a message."""
        return str(self.source) if isinstance(self.source, Path) else "image"

    def _decode(self) -> Image.Image:
        if isinstance(self.source, Image.Image):
            return self.source
        try:
            return decode(self.source, MAX_IMAGE_PIXELS)
        except TooManyPixels as error:
            raise DamagedSample(f"{self.name}: {error}") from error


Segment = TextSegment | ImageSegment

DocumentLayout = Literal["sample", "dialogue", "interleaved"]
"""`sample` is a picture with captions, questions and answers. In a `dialogue` the order itself is the content (request,
image, question, answer, request, image). `interleaved` is text and images as a page has them, all of it learnt."""
DocumentTask = Literal["edit", "riddle"]


class WithMeta:
    """What templates and tokenization read of a document's `meta`; nothing else reads these two keys."""

    meta: Mapping[str, Any]

    @property
    def layout(self) -> DocumentLayout:
        """A sample where the meta names none. Raises ValueError for a layout that does not exist."""
        layout, known = self.meta.get("layout", "sample"), get_args(DocumentLayout)
        if layout not in known:
            raise ValueError(f"the layout of a document is one of {', '.join(known)}, got {layout!r}")
        return cast("DocumentLayout", layout)

    @property
    def task(self) -> DocumentTask | None:
        """None where it has none of these; `meta` may say anything else."""
        task = self.meta.get("task")
        return cast("DocumentTask", task) if task in get_args(DocumentTask) else None


@dataclass(frozen=True, kw_only=True)
class Document(WithMeta):
    """Text and pictures in reading order.

    A picture with its caption and question/answer pairs is one document: image, caption, question, answer,
    question, answer ... Templates make training sequences of it. `meta` is kept beside the tokens as JSON.
    """

    key: str
    segments: tuple[Segment, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.segments:
            raise DamagedSample(f"{self.key}: a document without segments")


_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Joiners, fillers and blanks that Unicode counts among marks, letters and symbols (UAX 44, Default_Ignorable)."""


def is_visible(text: str) -> bool:
    """Whether a reader would see anything of it: more than spaces, controls, joiners and variation selectors."""
    return any(
        unicodedata.category(c) not in ("Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Cn")
        and c not in _INVISIBLE
        and not 0xFE00 <= ord(c) <= 0xFE0F
        and not 0xE0100 <= ord(c) <= 0xE01EF
        for c in text
    )
