"""Pictures to caption."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from data_pipelines.documents import Document, ImageSegment
from unimodal.training.rl.prompts.base import RLPrompt
from unimodal.training.rl.prompts.documents import SourcePrompts, pictures_by_role, texts_of


@dataclass(frozen=True, kw_only=True)
class Captions(SourcePrompts):
    """A picture alone, which the model has learnt to caption; facts: `captions`."""

    mode = "text"

    def makers(self, document: Document) -> Iterator[Callable[[], RLPrompt]]:
        """See `SourcePrompts`."""
        picture, captions = pictures_by_role(document).get("image"), texts_of(document, "caption")
        if document.layout == "sample" and picture is not None and captions:
            yield partial(_picture, f"{document.key} caption", picture, captions)


def _picture(name: str, picture: ImageSegment, captions: Sequence[str]) -> RLPrompt:
    return RLPrompt(name=name, prompt=[picture.open()], facts={"captions": captions})
