"""Requests that are answered with pictures and words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from data_pipelines.documents import Document
from unimodal.training.rl.prompts.base import RLPrompt
from unimodal.training.rl.prompts.documents import SourcePrompts, texts_of

DRAW_AND_DESCRIBE = "draw and describe"


@dataclass(frozen=True, kw_only=True)
class MixedRequests(SourcePrompts):
    """`draw a red circle and describe it`: one answer with a picture and its caption; facts: `captions`, `colour`,
    `shape`, `pictures`."""

    mode = "mixed"

    def defaults(self) -> dict[str, Any]:
        """See `SourcePrompts`."""
        return {"dialogues": 2000} if self.source == "easy_vqa" else {}

    def makers(self, document: Document) -> Iterator[Callable[[], RLPrompt]]:
        """See `SourcePrompts`."""
        if document.layout == "dialogue" and document.meta.get("form") == DRAW_AND_DESCRIBE:
            yield partial(_request, document)


def _request(document: Document) -> RLPrompt:
    [request, *_] = texts_of(document, "request")
    [caption] = document.meta["captions"]
    colour, shape = caption.split()[-2:]
    facts = {"captions": [caption], "colour": colour, "shape": shape, "pictures": 1}
    return RLPrompt(name=document.key, prompt=request, facts=facts)
