"""Prompts that are made of the documents of a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, overload

from data_pipelines.documents import Document, ImageSegment, TextSegment
from data_pipelines.sources.registry import open_source
from unimodal.training.rl.prompts.base import Prompts, RLPrompt


class LatePrompts(Sequence[RLPrompt]):
    """Prompts whose pictures are read when they are asked for."""

    def __init__(self, makers: Sequence[Callable[[], RLPrompt]]) -> None:
        self.makers = makers

    def __len__(self) -> int:
        return len(self.makers)

    @overload
    def __getitem__(self, index: int) -> RLPrompt: ...
    @overload
    def __getitem__(self, index: slice) -> LatePrompts: ...
    def __getitem__(self, index: int | slice) -> RLPrompt | LatePrompts:
        return LatePrompts(self.makers[index]) if isinstance(index, slice) else self.makers[index]()


@dataclass(frozen=True, kw_only=True)
class SourcePrompts(Prompts):
    """Prompts of a source of documents; `source`, `path`, `split` and `options` are those of `unimodal tokenize`.

    `limit`: the first so many alone.
    """

    source: str = "easy_vqa"
    path: Path | None = None
    split: str = "train"
    options: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None

    def open(self) -> Sequence[RLPrompt]:
        """See `Prompts`."""
        opened = open_source(self.source, path=self.path, split=self.split, **{**self.defaults(), **self.options})
        makers = list(islice((maker for each in opened.documents() for maker in self.makers(each)), self.limit))
        if not makers:
            raise ValueError(f"{self.source} {self.split} has nothing to make {self.kind} of")
        return LatePrompts(makers)

    def defaults(self) -> dict[str, Any]:
        """Options of the source that these prompts need."""
        return {"dialogues": 0} if self.source == "easy_vqa" else {}

    def makers(self, document: Document) -> Iterator[Callable[[], RLPrompt]]:
        """What makes the prompts of a document."""
        raise NotImplementedError


def texts_of(document: Document, role: str) -> list[str]:
    """Its texts of a role, in order."""
    return [part.text for part in document.segments if isinstance(part, TextSegment) and part.role == role]


def pictures_by_role(document: Document) -> dict[str, ImageSegment]:
    """The first picture of each role."""
    found: dict[str, ImageSegment] = {}
    for part in document.segments:
        if isinstance(part, ImageSegment):
            found.setdefault(part.role, part)
    return found
