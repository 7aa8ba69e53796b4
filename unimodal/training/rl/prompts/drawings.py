"""Captions to draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from data_pipelines.documents import Document
from unimodal.training.rl.prompts.base import RLPrompt
from unimodal.training.rl.prompts.documents import LatePrompts, SourcePrompts, texts_of


@dataclass(frozen=True, kw_only=True)
class Drawings(SourcePrompts):
    """Each distinct caption of a source, to be drawn; facts: `captions`, and `colour` and `shape` where they are
    known."""

    mode = "image"

    def open(self) -> Sequence[RLPrompt]:
        """See `Prompts`."""
        distinct = {prompt.words: prompt for prompt in super().open()}
        return LatePrompts([partial(_same, prompt) for prompt in distinct.values()])

    def makers(self, document: Document) -> Iterator[Callable[[], RLPrompt]]:
        """See `SourcePrompts`."""
        if document.layout == "sample":
            for text in texts_of(document, "caption"):
                yield partial(_drawing, text, document.meta)


def _drawing(text: str, meta: Mapping[str, Any]) -> RLPrompt:
    known = {name: meta[name] for name in ("colour", "shape") if name in meta}
    return RLPrompt(name=f"drawing of {text!r}", prompt=text, facts={"captions": [text], "pictures": 1, **known})


def _same(prompt: RLPrompt) -> RLPrompt:
    return prompt
