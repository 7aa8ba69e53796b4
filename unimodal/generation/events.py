"""An answer as it comes: text as soon as its characters are whole, a picture row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from data_pipelines.images import to_image
from tokenizers_vq.layout import FixedLayout, Size
from unimodal.generation.prompts import PromptCoder
from unimodal.generation.requests import Finish


@dataclass(frozen=True)
class Event:
    """Something that happened to the answer of prompt number `prompt`."""

    prompt: int


@dataclass(frozen=True)
class TextPiece(Event):
    """More text; the pieces of an answer put together are its text."""

    text: str


@dataclass(frozen=True)
class ImageStarted(Event):
    """The model begins to draw."""


@dataclass(frozen=True)
class ImageRows(Event):
    """The upper part of a picture: `rows` of `of` rows of codes. Its lower edge still lacks what comes below."""

    image: Image.Image
    rows: int
    of: int


@dataclass(frozen=True)
class ImageDone(Event):
    """The whole picture."""

    image: Image.Image


@dataclass(frozen=True)
class Ended(Event):
    """The answer has ended; `finish` says why."""

    finish: Finish


class Narrator:
    """Turns the ids of one answer, as they come, into events."""

    def __init__(self, coder: PromptCoder, prompt: int) -> None:
        self.coder, self.space, self.prompt = coder, coder.space, prompt
        self.text: list[int] = []
        self.num_reported = 0
        self.image: list[int] = []
        self.rows_reported = self.drawn = 0
        self.pictures: Sequence[Tensor] = ()

    def push(self, ids: list[int], pictures: Sequence[Tensor] = ()) -> Iterator[Event]:
        """New ids of the answer, and all pictures (3, H, W) that the flow branch has drawn for it."""
        specials = self.space.specials
        self.pictures = pictures
        for token in ids:
            if token == specials.boi:
                self._give_up_image()
                yield from self._finish_text()
                self.image, self.rows_reported = [token], 0
                yield ImageStarted(self.prompt)
            elif self.image:
                self.image.append(token)
                if token == specials.eoi:
                    yield from self._finish_image()
            elif token < self.space.text_size and token not in (*self.space.ends, specials.eoi):
                self.text.append(token)
        yield from self._text_so_far()
        yield from self._rows_so_far()

    def end(self, finish: Finish) -> Iterator[Event]:
        """No more ids come. The text in an image that was never finished (without rules) is text."""
        self._give_up_image()
        yield from self._finish_text()
        yield Ended(self.prompt, finish)

    def _text_so_far(self) -> Iterator[Event]:
        whole = self.coder.text.settled(self.text)
        if len(whole) > self.num_reported:
            yield TextPiece(self.prompt, whole[self.num_reported :])
            self.num_reported = len(whole)

    def _finish_text(self) -> Iterator[Event]:
        rest = self.coder.text.decode(self.text)[self.num_reported :]
        if rest:
            yield TextPiece(self.prompt, rest)
        self.text, self.num_reported = [], 0

    def _finish_image(self) -> Iterator[Event]:
        span = self.space.read_image(self.image, 0)
        if span is None:
            self._give_up_image()
        else:
            self.image = []
            given = self.pictures[self.drawn :]
            self.drawn += 1
            yield ImageDone(self.prompt, to_image(given[0]) if given else self.coder.pictures([span])[0])

    def _give_up_image(self) -> None:
        special = {self.space.specials.boi, self.space.specials.eoi, *self.space.ends}
        self.text += [token for token in self.image if token < self.space.text_size and token not in special]
        self.image = []

    def _rows_so_far(self) -> Iterator[Event]:
        size = self._size()
        if size is None:
            return
        codes = [token for token in self.image if token >= self.space.image_offset]
        rows = min(len(codes) // size[1], size[0])
        if rows > self.rows_reported:
            self.rows_reported = rows
            kept = self.space.to_codes(torch.tensor([codes[: rows * size[1]]]))
            yield ImageRows(self.prompt, to_image(self.coder.codec.decode(kept, (rows, size[1]))[0]), rows, size[0])

    def _size(self) -> Size | None:
        """The size of the open image, once it is known."""
        if not self.image:
            return None
        if isinstance(self.space.layout, FixedLayout):
            return self.space.layout.sizes[0]
        size = tuple(token - self.space.text_size for token in self.image[1:3])
        return (size[0], size[1]) if len(size) == 2 and size in self.space.layout.sizes else None
