"""Pictures to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from data_pipelines.documents import Document
from unimodal.training.rl.prompts.base import RLPrompt
from unimodal.training.rl.prompts.documents import SourcePrompts, pictures_by_role, texts_of


@dataclass(frozen=True, kw_only=True)
class Edits(SourcePrompts):
    """A picture and a request to change it; facts: `colour` and `shape` of the right answer, `shown` and `known`."""

    mode = "image"

    def defaults(self) -> dict[str, Any]:
        """See `SourcePrompts`."""
        return {"dialogues": 0, "edits": 2000} if self.source == "easy_vqa" else {}

    def makers(self, document: Document) -> Iterator[Callable[[], RLPrompt]]:
        """See `SourcePrompts`."""
        if document.task == "edit" and {"target", "shape"} <= document.meta.keys():
            yield partial(_edit, document)


def _edit(document: Document) -> RLPrompt:
    pictures = {role: part.open() for role, part in pictures_by_role(document).items()}
    [request, *_] = texts_of(document, "request")
    facts = {"colour": document.meta["target"], "shape": document.meta["shape"]}
    facts |= {"shown": pictures["image"], "known": pictures["answer"], "pictures": 1}
    return RLPrompt(name=document.key, prompt=[pictures["image"], request], facts=facts)
