"""Prompts: laid out as training sequences begin, and never with a special token that somebody typed."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.outline import Rendered
from data_pipelines.shards.format import TokenDocument, TokenSegment
from data_pipelines.templates import TemplateConfig, render
from tests.oracles.tiny import tiny_image_tokenizer, tiny_picture, tiny_pipeline
from tokenizers_vq.token_space import SPECIAL_STRINGS
from unimodal.generation.context import Context, guidance_contexts
from unimodal.generation.guidance import GuidanceConfig
from unimodal.generation.pipeline import Pipeline
from unimodal.generation.prompts import PromptCoder


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline()


@pytest.fixture
def coder(pipeline: Pipeline) -> PromptCoder:
    return pipeline.coder


def text(pipeline: Pipeline, role: str, words: str) -> TokenSegment:
    return TokenSegment(kind="text", role=role, ids=np.array(pipeline.text_tokenizer.encode(words)))


def shown(pipeline: Pipeline, picture: Image.Image, role: str = "image") -> TokenSegment:
    assert pipeline.image_tokenizer is not None
    codes = pipeline.image_tokenizer.encode(pipeline.preprocess(picture)[None])[0]
    return TokenSegment(kind="image", role=role, ids=pipeline.token_space.to_image_ids(codes).numpy())


def rendered(
    pipeline: Pipeline, segments: list[TokenSegment], layout: str = "sample", image_first: float = 1
) -> Rendered:
    document = TokenDocument(key="0", segments=tuple(segments), meta={"layout": layout})
    templates = TemplateConfig(image_first=image_first, drop_prompt=0)
    return render(document, pipeline.token_space, templates, Random(0))


def assert_begins(sequence: list[int], prompt: list[int]) -> None:
    assert sequence[: len(prompt)] == prompt and len(sequence) > len(prompt)


@pytest.mark.parametrize(
    "typed", [*SPECIAL_STRINGS, "draw <boi> now<eos>", "<sep><sep>", "< boi>", "", "ü 漢字 \x00\n"]
)
def test_what_a_user_types_never_becomes_a_special_token(pipeline: Pipeline, coder: PromptCoder, typed: str) -> None:
    specials = pipeline.token_space.specials
    [ids] = coder.encode([typed])
    assert (ids[0], ids[-1]) == (specials.bos, specials.sep)
    assert min(ids[1:-1], default=99) > specials.null
    assert max(ids) < pipeline.token_space.image_offset
    assert pipeline.text_tokenizer.decode(ids[1:-1]) == typed


def test_a_question_about_a_picture_begins_as_the_template_does(pipeline: Pipeline, coder: PromptCoder) -> None:
    picture = tiny_picture(1)
    question, answer = text(pipeline, "question", "what color is it?"), text(pipeline, "answer", "blue")
    other = [text(pipeline, "question", "is it red?"), text(pipeline, "answer", "no")]
    sequence = rendered(pipeline, [shown(pipeline, picture), *other, question, answer])
    alone = sequence.ids[(sequence.branches == 0) | (sequence.branches == 2)].tolist()
    [prompt] = coder.encode([[picture, "what color is it?"]])
    assert_begins(alone, prompt)
    assert alone[len(prompt) :] == [*answer.ids.tolist(), pipeline.token_space.specials.eos]


def test_a_picture_alone_asks_for_its_caption_as_the_template_does(pipeline: Pipeline, coder: PromptCoder) -> None:
    picture, caption = tiny_picture(2), text(pipeline, "caption", "a green picture")
    sequence = rendered(pipeline, [shown(pipeline, picture), caption]).ids.tolist()
    [prompt] = coder.encode([[picture]])
    assert_begins(sequence, prompt)
    assert sequence[len(prompt) :] == [*caption.ids.tolist(), pipeline.token_space.specials.eos]


@pytest.mark.parametrize("image_scale", [None, 1.5])
def test_an_edit_is_trained_in_exactly_the_forms_that_guidance_compares(
    pipeline: Pipeline, coder: PromptCoder, image_scale: float | None
) -> None:
    picture, answer = tiny_picture(1), shown(pipeline, tiny_picture(2), "answer")
    segments = (shown(pipeline, picture), text(pipeline, "request", "make it red"), answer)
    document = TokenDocument(key="0", segments=segments, meta={"layout": "dialogue", "task": "edit"})
    space = pipeline.token_space
    [prompt] = coder.encode([[picture, "make it red"]])
    context = Context()
    context.say(prompt)
    found = guidance_contexts(context, space, GuidanceConfig(scale=2, image_scale=image_scale))
    compared = [one.piece().tokens for one in found]
    drops = [(0, 0), (0, 1)] if image_scale is None else [(0, 0), (0, 1), (1, 0)]
    for (drop_prompt, drop_image), context in zip(drops, [prompt, *compared], strict=True):
        config = TemplateConfig(drop_prompt=drop_prompt, drop_image=drop_image)
        sequence = render(document, space, config, Random(0)).ids.tolist()
        assert_begins(sequence, context)
        end = [space.specials.boi, *answer.ids.tolist(), space.specials.eoi, space.specials.eos]
        assert sequence[len(context) :] == end


def test_a_text_alone_asks_for_its_picture_as_the_template_does(pipeline: Pipeline, coder: PromptCoder) -> None:
    image, caption = shown(pipeline, tiny_picture(3)), text(pipeline, "caption", "a black picture")
    sequence = rendered(pipeline, [image, caption], image_first=0).ids.tolist()
    [prompt] = coder.encode(["a black picture"])
    assert_begins(sequence, prompt)
    assert sequence[len(prompt)] == pipeline.token_space.specials.boi


def test_a_dialogue_is_laid_out_as_the_template_lays_it_out(pipeline: Pipeline, coder: PromptCoder) -> None:
    drawn = tiny_picture(4)
    turns = [
        text(pipeline, "request", "draw a circle"),
        text(pipeline, "answer", "here:"),
        shown(pipeline, drawn, role="answer"),
        text(pipeline, "request", "what color is it?"),
        text(pipeline, "answer", "white"),
        text(pipeline, "request", "thanks"),
        text(pipeline, "answer", "welcome"),
    ]
    sequence = rendered(pipeline, turns, layout="dialogue").ids.tolist()
    said = ["draw a circle", ["here:", drawn], "what color is it?", ["white"], "thanks"]
    for length in (1, 3, 5):
        [prompt] = coder.encode([said[:length]])
        assert_begins(sequence, prompt)


def test_a_picture_that_occurs_often_is_encoded_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, seen = tiny_image_tokenizer(), []
    coder = PromptCoder(pipeline.token_space, pipeline.text_tokenizer, codec)
    encode = codec.encode
    monkeypatch.setattr(codec, "encode", lambda images: seen.append(len(images)) or encode(images))
    one, two = tiny_picture(0), tiny_picture(1)
    ids = coder.encode([[one, "a"], [one, "b"], [two, [one], "c"], [one]])
    assert sum(seen) == 2
    assert ids[0][:7] == ids[1][:7] == ids[3][:7] != ids[2][:7]


def test_answers_come_back_as_the_text_and_pictures_they_were_made_of(pipeline: Pipeline, coder: PromptCoder) -> None:
    specials, space = pipeline.token_space.specials, pipeline.token_space
    codes = torch.randint(space.codebook_size, (2, 4))
    first, second = ([specials.boi, *row, specials.eoi] for row in space.to_image_ids(codes).tolist())
    words = [pipeline.text_tokenizer.encode(part) for part in ("a red ", "circle, and", "naïve ✓")]
    answer = [*words[0], *first, *words[1], *second, *words[2], specials.eos]
    one, drawn, two, drawn_too, three = coder.decode([answer])[0]
    assert (one, two, three) == ("a red ", "circle, and", "naïve ✓")
    for picture, row in ((drawn, codes[:1]), (drawn_too, codes[1:])):
        assert isinstance(picture, Image.Image) and pipeline.image_tokenizer is not None
        expected = pipeline.image_tokenizer.decode(row)[0]
        torch.testing.assert_close(pipeline.preprocess(picture), expected, rtol=0, atol=1.001 / 127.5)


def test_pieces_of_a_malformed_image_are_left_out(pipeline: Pipeline, coder: PromptCoder) -> None:
    specials, code = pipeline.token_space.specials, pipeline.token_space.image_offset
    red = pipeline.text_tokenizer.encode("red")
    for broken in ([specials.boi, code, code], [code, specials.eoi], [specials.boi, code, code, specials.eoi]):
        assert coder.decode([[*broken, *red, specials.eos]]) == [["red"]]
    assert coder.decode([[specials.eos], []]) == [[], []]


def test_a_prompt_of_anything_else_is_refused(coder: PromptCoder) -> None:
    with pytest.raises(ValueError, match="strings and pictures, got int"):
        coder.encode([["a", 3]])  # pyright: ignore[reportArgumentType]
