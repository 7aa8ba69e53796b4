"""Interleaved documents made from easy-VQA images: requests, pictures, questions and answers in one order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.documents import ImageSegment, Segment, TextSegment

DRAW_REQUESTS = ("draw {}", "show me {}", "please draw {}")
DRAW_AND_DESCRIBE_REQUESTS = ("draw {} and describe it", "draw {} and say what it is")


@dataclass(frozen=True, kw_only=True)
class CaptionedImage:
    """An image whose colour and shape are settled, with its own questions and answers."""

    image_id: int
    path: Path
    caption: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """An ordered exchange and the images it is made from."""

    form: str
    segments: tuple[Segment, ...]
    images: tuple[CaptionedImage, ...]


def make_dialogue(images: Sequence[CaptionedImage], rng: random.Random) -> Dialogue:
    """One exchange about one or two of `images`, which must hold at least two captions. Its form is drawn too."""
    first = rng.choice(images)
    form = rng.choice((_draw_and_describe, _draw_question_draw, _show_question_draw))
    return form(first, _another(images, first, rng), rng)


def _draw_and_describe(first: CaptionedImage, _: CaptionedImage, rng: random.Random) -> Dialogue:
    segments = (
        _request(DRAW_AND_DESCRIBE_REQUESTS, first, rng),
        ImageSegment(source=first.path, role="answer"),
        TextSegment(text=first.caption, role="answer"),
    )
    return Dialogue(form="draw and describe", segments=segments, images=(first,))


def _draw_question_draw(first: CaptionedImage, second: CaptionedImage, rng: random.Random) -> Dialogue:
    segments = (
        _request(DRAW_REQUESTS, first, rng),
        ImageSegment(source=first.path, role="answer"),
        *_question_and_answer(first, rng),
        _request(DRAW_REQUESTS, second, rng),
        ImageSegment(source=second.path, role="answer"),
    )
    return Dialogue(form="draw, question, draw", segments=segments, images=(first, second))


def _show_question_draw(first: CaptionedImage, second: CaptionedImage, rng: random.Random) -> Dialogue:
    segments = (
        ImageSegment(source=first.path),
        *_question_and_answer(first, rng),
        _request(DRAW_REQUESTS, second, rng),
        ImageSegment(source=second.path, role="answer"),
    )
    return Dialogue(form="look, question, draw", segments=segments, images=(first, second))


def _another(images: Sequence[CaptionedImage], first: CaptionedImage, rng: random.Random) -> CaptionedImage:
    """An image with a caption other than `first`'s. Drawing again is quick, because captions are many."""
    while (second := rng.choice(images)).caption == first.caption:
        pass
    return second


def _request(forms: Sequence[str], image: CaptionedImage, rng: random.Random) -> TextSegment:
    return TextSegment(text=rng.choice(forms).format(image.caption), role="request")


def _question_and_answer(image: CaptionedImage, rng: random.Random) -> tuple[TextSegment, TextSegment]:
    question, answer = rng.choice(image.pairs)
    return TextSegment(text=question, role="question"), TextSegment(text=answer, role="answer")
