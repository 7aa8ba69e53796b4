"""Riddles: requests that name a picture by what it is not."""

from __future__ import annotations

import random
from collections import Counter
from random import Random

import pytest

from data_pipelines.documents import THINKING, ImageSegment, TextSegment
from data_pipelines.failures import FailureLog
from data_pipelines.sources.easy_vqa import COLOURS, SHAPES, EasyVQA, caption
from data_pipelines.sources.easy_vqa_riddles import riddle
from data_pipelines.templates import TemplateConfig, render
from tests.oracles.token_documents import BOI, BOS, EOI, EOS, SEP, SPACE, document, image, text


def test_each_riddle_has_one_solution_and_does_not_name_it() -> None:
    source = EasyVQA(split="test", failures=FailureLog(), dialogues=0, riddles=300)
    found = [one for one in source.documents() if one.meta.get("task") == "riddle"]
    assert len(found) == 300 and len(source) == sum(1 for _ in source.documents())
    samples = {one.meta["image_id"]: one for one in source.documents() if one.meta["layout"] == "sample"}
    for one in found:
        request, solution, drawn = one.segments
        assert (
            isinstance(request, TextSegment) and isinstance(solution, TextSegment) and isinstance(drawn, ImageSegment)
        )
        assert [s.role for s in one.segments] == ["request", "answer", "answer"]
        assert request.text.startswith(THINKING)
        colour, shape = one.meta["colour"], one.meta["shape"]
        assert solution.text == caption(colour, shape)
        assert [each for each in COLOURS if each in request.text] == [colour]
        assert {each for each in SHAPES if each in request.text} == set(SHAPES) - {shape}
        own = samples[one.meta["image_id"]].segments[0]
        assert isinstance(own, ImageSegment) and drawn.open().tobytes() == own.open().tobytes()


def test_riddles_repeat_with_their_seed_and_differ_in_form() -> None:
    asked = Counter(riddle("teal", "circle", random.Random(seed)) for seed in range(60))
    assert len(asked) == 6 and riddle("red", "circle", Random(1)) == riddle("red", "circle", Random(1))


def test_a_riddle_is_told_as_a_solution_and_a_picture() -> None:
    one = document(text("request", 8), text("answer", 9), image("answer"), layout="dialogue", task="riddle")
    rendered = render(one, SPACE, TemplateConfig(), Random(0))
    assert rendered.ids.tolist() == [BOS, 8, SEP, 9, BOI, 16, 17, 18, 19, EOI, EOS]
    assert rendered.weights.tolist() == [0, 0, 0, *[1] * 8]


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="riddles must be a number"):
        EasyVQA(split="test", failures=FailureLog(), riddles=-1)
