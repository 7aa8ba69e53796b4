"""Questions about pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from data_pipelines.documents import Document, ImageSegment
from unimodal.training.rl.prompts.base import RLPrompt
from unimodal.training.rl.prompts.documents import SourcePrompts, pictures_by_role, texts_of


@dataclass(frozen=True, kw_only=True)
class Questions(SourcePrompts):
    """A picture and a question; facts: `answers`, all that the source has for it. `only` keeps questions with one of
    these answers, `yes` and `no` say."""

    only: tuple[str, ...] = ()

    mode = "text"

    def makers(self, document: Document) -> Iterator[Callable[[], RLPrompt]]:
        """See `SourcePrompts`."""
        picture = pictures_by_role(document).get("image")
        if document.layout != "sample" or picture is None:
            return
        pairs = zip(texts_of(document, "question"), texts_of(document, "answer"), strict=False)
        for number, (question, answer) in enumerate(pairs):
            if not self.only or answer in self.only:
                yield partial(_question, f"{document.key} question {number}", picture, question, answer)


def _question(name: str, picture: ImageSegment, question: str, answer: str) -> RLPrompt:
    return RLPrompt(name=name, prompt=[picture.open(), question], facts={"answers": [answer]})
