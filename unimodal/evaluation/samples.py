"""Documents as evaluation reads them: one picture with its captions and its questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from data_pipelines.documents import DamagedSample, Document, ImageSegment, TextSegment
from data_pipelines.images import to_image
from unimodal.evaluation.contract import AnyToAnyModel, DocumentSource
from unimodal.generation.prompts import Prompt
from unimodal.generation.settings import Mode


def captions_of(document: Document) -> list[str]:
    """Of a sample; none of other layouts."""
    texts = [part for part in document.segments if isinstance(part, TextSegment) and part.role == "caption"]
    return [part.text for part in texts] if document.layout == "sample" else []


def picture_of(document: Document) -> ImageSegment | None:
    """The first one."""
    return next((segment for segment in document.segments if isinstance(segment, ImageSegment)), None)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with everything that people answered."""

    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture as the model is shown it, and what the data say about it."""

    key: str
    image: Image.Image
    captions: tuple[str, ...]
    questions: tuple[Question, ...]


def read_samples(source: DocumentSource, model: AnyToAnyModel, *, limit: int | None = None) -> Iterator[Sample]:
    """The first `limit` sample documents with a picture, each at the model's own size; dialogues are passed over.

    A picture that cannot be read is counted in the source's `failures`; too many of them raise TooMuchDamage.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"the limit is at least 1, got {limit}")
    found = 0
    for document in source.documents():
        picture = picture_of(document)
        if document.layout != "sample" or picture is None:
            continue
        try:
            image = to_image(model.preprocess(picture.open()))
        except DamagedSample as error:
            source.failures.revoke(document.key, str(error))
            continue
        yield Sample(key=document.key, image=image, captions=_captions(document), questions=_questions(document))
        found += 1
        if found == limit:
            break
    source.failures.close()


def answerable(
    model: AnyToAnyModel,
    source: DocumentSource,
    names: Sequence[str],
    prompts: Sequence[Prompt],
    mode: Mode,
    settings: Mapping[str, Any],
) -> list[int]:
    """Numbers of the prompts that the model can take; the others are counted by name, before any work is done."""
    refused = model.refused(prompts, mode, **settings)
    for number, reason in refused.items():
        source.failures.revoke(names[number], reason)
    return [number for number in range(len(prompts)) if number not in refused]


def _captions(document: Document) -> tuple[str, ...]:
    return tuple(_texts(document, "caption"))


def _texts(document: Document, role: str) -> Iterator[str]:
    return (part.text for part in document.segments if isinstance(part, TextSegment) and part.role == role)


def _questions(document: Document) -> tuple[Question, ...]:
    """Every question with the answers that stand right after it, or with those `meta["answers"]` lists for it."""
    found: list[tuple[str, list[str]]] = []
    for part in document.segments:
        if not isinstance(part, TextSegment):
            continue
        if part.role == "question":
            found.append((part.text, []))
        elif part.role == "answer" and found:
            found[-1][1].append(part.text)
    if everyones := document.meta.get("answers"):
        found = [(text, answers) for (text, _), answers in zip(found, everyones, strict=True)]
    return tuple(Question(text=text, answers=tuple(answers)) for text, answers in found if answers)
