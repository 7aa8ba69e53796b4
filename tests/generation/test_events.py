"""Streaming: the events of an answer, put together, are the answer."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.oracles.tiny import IMAGE_SIZE, tiny_pipeline
from tokenizers_vq.text import BROKEN
from unimodal.generation.events import Ended, Event, ImageDone, ImageRows, ImageStarted, Narrator, TextPiece
from unimodal.generation.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


def put_together(events: list[Event], prompt: int) -> list[Any]:
    """Text and pictures (as bytes) of one answer."""
    parts: list[Any] = []
    for event in events:
        if event.prompt == prompt and isinstance(event, TextPiece):
            before = parts.pop() if parts and isinstance(parts[-1], str) else ""
            parts.append(before + event.text)
        if event.prompt == prompt and isinstance(event, ImageDone):
            parts.append(event.image.tobytes())
    return parts


def test_events_put_together_are_the_answers(pipeline: Pipeline) -> None:
    prompts, settings = ["a red circle", "blue", "is it red?"] * 4, {"temperature": 1.5, "max_new_tokens": 30}
    events = list(pipeline.generate(prompts, stream=True, batch_size=5, **settings))
    answers = pipeline.generate(prompts, **settings)
    for number, answer in enumerate(answers):
        plain = [part.tobytes() if isinstance(part, Image.Image) else part for part in answer]
        assert put_together(events, number) == [part for part in plain if part != ""]
        [end] = [event for event in events if event.prompt == number and isinstance(event, Ended)]
        assert end.finish == answer.finish
    assert any(isinstance(event, TextPiece) for event in events)
    first_end = next(index for index, event in enumerate(events) if isinstance(event, Ended))
    assert {event.prompt for event in events[:first_end]} == set(range(5))


def test_without_rules_events_still_make_up_the_text(pipeline: Pipeline) -> None:
    settings: dict[str, Any] = {"constrained": False, "max_new_tokens": 40}
    events = list(pipeline.generate(["a"] * 40, stream=True, **settings))
    answers = pipeline.generate(["a"] * 40, **settings)
    for number, answer in enumerate(answers):
        told = "".join(part for part in put_together(events, number) if isinstance(part, str))
        whole = "".join(part for part in answer if isinstance(part, str))
        assert told.replace(BROKEN, "") == whole.replace(BROKEN, "")


def test_a_picture_grows_row_by_row(pipeline: Pipeline) -> None:
    events = list(pipeline.generate(["red"], mode="image", stream=True))
    assert [type(event) for event in events] == [ImageStarted, ImageRows, ImageRows, ImageDone, Ended]
    rows = [event for event in events if isinstance(event, ImageRows)]
    assert [(event.rows, event.of, event.image.size) for event in rows] == [
        (1, 2, (IMAGE_SIZE, IMAGE_SIZE // 2)),
        (2, 2, (IMAGE_SIZE, IMAGE_SIZE)),
    ]
    done = events[3]
    assert isinstance(done, ImageDone) and rows[1].image.tobytes() == done.image.tobytes()


@pytest.mark.parametrize("text", ["naïve — 日本", "a🙂b", "🙂", "\ufffd?"])
def test_a_character_of_many_tokens_comes_whole(pipeline: Pipeline, text: str) -> None:
    ids = pipeline.text_tokenizer.encode(text)
    assert len(ids) > len(text)
    narrator = Narrator(pipeline.coder, 0)
    pieces: list[str] = []
    for token in ids:
        pieces += [event.text for event in narrator.push([token]) if isinstance(event, TextPiece)]
    assert BROKEN not in "".join(pieces) or BROKEN in text
    pieces += [event.text for event in narrator.end("end") if isinstance(event, TextPiece)]
    assert "".join(pieces) == text


def test_a_character_that_is_never_finished_is_told_at_the_end(pipeline: Pipeline) -> None:
    narrator = Narrator(pipeline.coder, 0)
    assert not list(narrator.push(pipeline.text_tokenizer.encode("🙂")[:2]))
    [piece, end] = narrator.end("length")
    assert isinstance(piece, TextPiece) and piece.text.startswith(BROKEN) and end == Ended(0, "length")
