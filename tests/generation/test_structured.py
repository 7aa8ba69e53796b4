"""Structured answers: whatever the logits, the text follows its grammar and pictures stand where they may."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from PIL import Image

from tests.oracles.tiny import tiny_pipeline
from unimodal.generation.grammars import Choices, Grammar, JSONSchema, Lark, Regex, as_grammar, parse_json
from unimodal.generation.pipeline import Pipeline

PLAIN: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "sure": {"type": "boolean"},
        "kind": {"enum": ["circle", "square"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "sure", "kind", "count"],
    "additionalProperties": False,
}
MIXED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "caption": {"type": "string", "maxLength": 4},
        "image": {"type": "image"},
        "more": {"type": "array", "items": {"type": "image"}, "minItems": 1, "maxItems": 2},
    },
}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_pipeline(max_length=200)


def answers(pipeline: Pipeline, grammar: Grammar, count: int = 12, **settings: Any) -> list[Any]:
    return pipeline.generate(["a red circle"] * count, grammar=grammar, temperature=2.0, max_new_tokens=150, **settings)


def test_an_answer_under_choices_is_one_of_them(pipeline: Pipeline) -> None:
    offered = ["red", "light blue", "no"]
    found = {"".join(answer) for answer in answers(pipeline, Choices(offered), 40, mode="text")}
    assert found == set(offered)


def test_an_answer_under_a_regular_expression_matches_it(pipeline: Pipeline) -> None:
    pattern = r"[a-c]{2,3}/[0-9]+x"
    for answer in answers(pipeline, Regex(pattern), mode="text"):
        assert answer.finish == "length" or re.fullmatch(pattern, "".join(answer))
        assert re.match(r"[a-c]{2,3}/", "".join(answer))


def test_an_answer_under_a_schema_is_a_document_that_the_schema_allows(pipeline: Pipeline) -> None:
    for answer in answers(pipeline, JSONSchema(PLAIN), mode="text"):
        assert answer.finish == "end"
        jsonschema.validate(parse_json(answer), PLAIN)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_pictures_stand_in_a_document_where_the_schema_has_them(pipeline: Pipeline, guidance: float) -> None:
    for answer in answers(pipeline, JSONSchema(MIXED), guidance=guidance):
        assert answer.finish == "end"
        document = parse_json(answer)
        assert list(document) == ["caption", "image", "more"]
        assert isinstance(document["image"], Image.Image) and isinstance(document["caption"], str)
        assert 1 <= len(document["more"]) <= 2 and all(isinstance(one, Image.Image) for one in document["more"])


@pytest.mark.slow
def test_answers_with_and_without_a_grammar_go_into_one_batch_and_get_what_they_get_alone(pipeline: Pipeline) -> None:
    from unimodal.generation.requests import Request

    prompts = pipeline.coder.encode(["a red circle", "blue", "is it red?"])
    kinds = [{"grammar": JSONSchema(MIXED)}, {"guidance": 2.0}, {"grammar": Choices(["yes", "no"]), "mode": "text"}]
    asked = [
        Request(prompt=prompt, config=pipeline.decode_config(max_new_tokens=100, **kind), seed=seed)
        for seed, (prompt, kind) in enumerate(zip(prompts * 2, kinds * 2, strict=True))
    ]
    together = [answer.ids for answer in pipeline.answers(asked, batch_size=4)]
    assert together == [pipeline.answers([request])[0].ids for request in asked]


def test_recomputed_log_probabilities_of_structured_answers_are_those_recorded(pipeline: Pipeline) -> None:
    from unimodal.generation.requests import Request

    config = pipeline.decode_config(grammar=JSONSchema(MIXED), guidance=2.0, max_new_tokens=100)
    asked = [Request(prompt=pipeline.coder.encode(["red"])[0], config=config, seed=seed) for seed in range(4)]
    found = pipeline.answers(asked)
    scores = pipeline.engine.score(asked, [answer.ids for answer in found])
    for answer, one in zip(found, scores, strict=True):
        assert one.tolist() == pytest.approx(answer.log_probs, abs=1e-3)


def test_a_document_whose_picture_has_no_room_ends_before_it_and_says_so(pipeline: Pipeline) -> None:
    (answer,) = pipeline.generate(["a"], grammar=Lark('start: "a" image'), max_new_tokens=5)
    assert answer == ["a"] and answer.finish == "no room for an image"
    with pytest.raises(ValueError, match="no whole JSON document"):
        parse_json(answer)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (JSONSchema({"type": "nothing"}), "not a usable JSONSchema: Invalid type: nothing"),
        (JSONSchema({"anyOf": [{"type": "image"}]}), "a picture is a property of an object"),
        (JSONSchema({"type": "array", "items": {"type": "image"}, "minItems": 3, "maxItems": 2}), "got 3 to 2"),
        (JSONSchema({"type": "array", "items": {"type": "image"}, "minItems": 0}), "got 0 to 4"),
        (JSONSchema({"type": "object", "properties": [{"type": "image"}]}), "a picture is a property of an object"),
        (JSONSchema({"type": "array", "items": [{"type": "image"}]}), "a picture is a property of an object"),
        (
            JSONSchema({"type": "object", "properties": {"a": 3, "b": {"type": "image"}}}),
            "a schema is an object, got 3",
        ),
        (Regex("["), "unclosed character class"),
        (Regex(5), "a regular expression is a string"),  # pyright: ignore[reportArgumentType]
        (Lark('start: <boi> "a"'), "unknown special token"),
        (5, "a grammar is a schema, a list of answers"),
        (Lark("start: nothing"), 'unknown name: "nothing"'),
    ],
)
def test_a_grammar_that_is_none_is_refused_in_one_line(pipeline: Pipeline, grammar: Grammar, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as error:
        pipeline.generate(["a"], grammar=grammar)
    assert "\n" not in str(error.value)


def test_schemas_lists_and_lark_stand_for_their_grammars(pipeline: Pipeline) -> None:
    for plain, grammar in (
        (PLAIN, JSONSchema(PLAIN)),
        (["a", "b"], Choices(["a", "b"])),
        ('start: "a"', Lark('start: "a"')),
    ):
        assert as_grammar(plain) == grammar == as_grammar(grammar)
        named = pipeline.generate(["red"], grammar=grammar, seed=3, max_new_tokens=60)
        assert pipeline.generate(["red"], grammar=plain, seed=3, max_new_tokens=60) == named


@pytest.mark.parametrize("said", ["a <eos> b", "<boi>", "<pad>", "<sep><null>"])
def test_the_names_of_special_tokens_are_text_in_a_grammar_as_everywhere(pipeline: Pipeline, said: str) -> None:
    for grammar in (Choices([said]), {"const": said}, Regex(re.escape(said).replace(r"\<", "<").replace(r"\>", ">"))):
        (answer,) = pipeline.generate(["a"], mode="text", grammar=grammar)
        assert "".join(map(str, answer)).strip('"') == said and answer.finish == "end"


def test_slashes_of_a_regular_expression_may_be_escaped_or_not(pipeline: Pipeline) -> None:
    for pattern in ("a/b", r"a\/b"):
        assert pipeline.generate(["a"], mode="text", grammar=Regex(pattern)) == [["a/b"]]


def test_references_reach_the_definitions_of_the_whole_schema(pipeline: Pipeline) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"$ref": "#/$defs/kind"}, "image": {"type": "image"}},
        "$defs": {"kind": {"enum": ["circle"]}},
    }
    assert parse_json(pipeline.generate(["a"], grammar=schema)[0])["kind"] == "circle"


@pytest.mark.parametrize("grammar", [Lark("start: image"), MIXED, Lark('start: "image" pic\npic: image')])
def test_a_grammar_with_pictures_needs_mode_mixed(pipeline: Pipeline, grammar: Any) -> None:
    with pytest.raises(ValueError, match="this grammar wants pictures: they need mode 'mixed'"):
        pipeline.generate(["a"], mode="text", grammar=grammar)
    assert pipeline.generate(["a"], mode="text", grammar=Lark('start: "image" | /image/'))[0] == ["image"]


def test_an_answer_that_ended_for_want_of_room_is_scored_like_any_other(pipeline: Pipeline) -> None:
    from unimodal.generation.requests import Request

    config = pipeline.decode_config(grammar=Lark('start: "a" image'), max_new_tokens=4)
    request = Request(prompt=pipeline.coder.encode(["red"])[0], config=config)
    [answer] = pipeline.answers([request])
    [scores] = pipeline.engine.score([request], [answer.ids])
    assert scores.tolist() == pytest.approx(answer.log_probs, abs=1e-5)


@pytest.mark.parametrize("offered", [[], [""], "yes", [3]])
def test_choices_without_a_choice_are_refused(offered: Any) -> None:
    with pytest.raises(ValueError, match="choices are a list of answers"):
        Choices(offered)


def test_parsed_documents_hold_what_was_said_and_the_pictures_themselves() -> None:
    picture = Image.new("RGB", (2, 2))
    document = parse_json(['{"a":[', picture, '],"b":', json.dumps({"c": "picture 1"}), "}"])
    assert document == {"a": [picture], "b": {"c": "picture 1"}} and document["a"][0] is picture
