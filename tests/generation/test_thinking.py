"""Thinking: the plan stands in the picture's context, for both branches, and wrong use is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from data_pipelines.documents import THINKING
from tests.oracles.pictures import noise
from tests.oracles.tiny import tiny_flow_pipeline, tiny_pipeline
from unimodal.generation.flow_sampling import FlowSamplingConfig
from unimodal.generation.pipeline import Pipeline
from unimodal.generation.requests import DecodeConfig
from unimodal.generation.thinking import ThinkingConfig

PROMPTS: list[Any] = ["a red circle", [noise(16, 16, seed=0), "make it blue"], ["a", ["yes"], "b"]]
PLANNED = ThinkingConfig(instruction="first plan: ", token_budget=6, temperature=1.0)


@pytest.fixture(scope="module", params=["codes", "latents"])
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return tiny_pipeline(max_length=128) if request.param == "codes" else tiny_flow_pipeline()


def settings(pipeline: Pipeline) -> dict[str, Any]:
    return {"flow": FlowSamplingConfig(steps=3)} if pipeline.model.config.flow else {}


def test_a_picture_is_drawn_from_the_prompt_and_the_plan(pipeline: Pipeline) -> None:
    """By hand: the plan is an answer in text up to a picture, and its ids follow the prompt's when that is drawn."""
    more = settings(pipeline)
    words = replace(pipeline.decode_config("text", 6, 1.0), until_image=True)
    answers = pipeline.generate(PROMPTS, mode="image", think=PLANNED, seed=4, guidance=2.0, **more)
    config = pipeline.decode_config("image", guidance=2.0, **more)
    specials = pipeline.token_space.specials
    told_by_hand: list[Any] = [
        "first plan: a red circle",
        ["first plan: ", *PROMPTS[1]],
        ["first plan: a", *PROMPTS[2][1:]],
    ]
    for number, (told, answer) in enumerate(zip(told_by_hand, answers, strict=True)):
        (plan,) = pipeline.engine.decode(pipeline.requests([told], words, 4 + number))
        said = [token for token in plan.ids if token not in (specials.eos, specials.boi)]
        (request,) = pipeline.requests([told], config, 4 + number)
        request.prompt.extend(said)  # pyright: ignore[reportAttributeAccessIssue]
        (drawn,) = pipeline.finished(pipeline.engine.decode([request]))
        assert answer.ids == said + drawn.ids and len(answer.log_probs) == len(answer.ids)
        assert "".join(map(str, answer[:-1])) == pipeline.text_tokenizer.decode(said)
        assert isinstance(answer[-1], Image.Image) and answer[-1].tobytes() == drawn[0].tobytes()  # type: ignore[union-attr]


def assert_plans_end_where_they_should(model: Pipeline) -> None:
    """Of 40 plans of random weights some end at a picture and some by themselves, and none goes on after that."""
    specials = model.token_space.specials
    words = replace(model.decode_config("text", 40, 1.0), until_image=True)
    plans = model.engine.decode([model.requests(["a"], words, seed)[0] for seed in range(40)])
    for plan in plans:
        assert specials.boi not in plan.ids[:-1] and specials.eos not in plan.ids[:-1]
        assert (plan.finish == "end") == (plan.ids[-1] in (specials.boi, specials.eos))
    assert {specials.boi, specials.eos} <= {plan.ids[-1] for plan in plans}


def test_a_plan_ends_where_its_picture_would_begin(pipeline: Pipeline) -> None:
    assert_plans_end_where_they_should(pipeline)


def test_so_does_one_of_a_model_that_sees_through_a_vit() -> None:
    assert_plans_end_where_they_should(tiny_flow_pipeline(vit=True))


def test_until_image_goes_with_text_alone(pipeline: Pipeline) -> None:
    for wrong in ({"mode": "mixed"}, {"mode": "text", "constrained": False}):
        with pytest.raises(ValueError, match="until_image goes with mode 'text'"):
            DecodeConfig(until_image=True, **wrong)  # type: ignore[arg-type]


def test_a_plan_has_a_temperature_of_its_own(pipeline: Pipeline) -> None:
    """At 0 every seed plans alike, whatever the temperature of the picture; above it they differ."""

    def plans(temperature: float) -> set[str]:
        thinking = replace(PLANNED, temperature=temperature)
        drawn = pipeline.generate(["a"] * 6, mode="image", think=thinking, temperature=2.0, **settings(pipeline))
        assert len({answer[-1].tobytes() for answer in drawn if isinstance(answer[-1], Image.Image)}) > 1
        return {"".join(str(part) for part in answer[:-1]) for answer in drawn}

    assert len(plans(0.0)) == 1 < len(plans(1.5))


def test_the_plan_changes_the_picture(pipeline: Pipeline) -> None:
    more = settings(pipeline)
    pictures = set()
    for seed in range(3):
        told = ThinkingConfig(instruction="first plan: ", token_budget=6, temperature=5.0)
        (answer,) = pipeline.generate(["a"], mode="image", think=told, seed=seed, temperature=0.0, guidance=1.0, **more)
        pictures.add((tuple(answer.ids[:-6]), answer[-1].tobytes()))  # type: ignore[union-attr]
    assert len({plan for plan, _ in pictures}) == len({picture for _, picture in pictures}) == 3


def test_thinking_is_refused_where_it_makes_no_sense(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="goes with mode 'image'"):
        pipeline.generate(["a"], mode="text", think=True)
    with pytest.raises(ValueError, match="does not go with stream"):
        pipeline.generate(["a"], mode="image", think=True, stream=True)
    for wrong in ({"token_budget": 0}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match="plan"):
            ThinkingConfig(**wrong)  # type: ignore[arg-type]


def test_instruction_and_request_are_one_text_as_riddles_are(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    real = pipeline.engine.decode

    def decode(requests: Any, **more: Any) -> Any:
        seen.append(list(requests[0].prompt))
        return real(requests, **more)

    monkeypatch.setattr(pipeline.engine, "decode", decode)
    pipeline.generate(["it is red"], mode="image", think=True, **settings(pipeline))
    specials = pipeline.token_space.specials
    text = pipeline.text_tokenizer.encode(THINKING + "it is red")
    assert seen[0] == [specials.bos, *text, specials.sep] and seen[1][: len(seen[0])] == seen[0]


@pytest.mark.slow
def test_a_plan_leaves_room_for_its_picture(pipeline: Pipeline) -> None:
    """However long a plan would like to be; a prompt that leaves none is named before anything is decoded."""
    more = settings(pipeline)
    longest = pipeline.model.config.trunk.max_length
    wordy = ThinkingConfig(instruction="", token_budget=10 * longest, temperature=5.0)
    for seed in range(4):
        (answer,) = pipeline.generate(["a" * 40], mode="image", think=wordy, seed=seed, **more)
        assert isinstance(answer[-1], Image.Image) and answer.finish == "end"
    refused = []
    for length in range(longest - 24, longest):
        try:
            (answer,) = pipeline.generate(["\u00e9" * (length // 2)], mode="image", think=wordy, **more)
            assert isinstance(answer[-1], Image.Image)
            refused.append(False)
        except ValueError as error:
            assert "no room for a plan and a picture" in str(error)
            refused.append(True)
    assert refused == sorted(refused) and set(refused) == {False, True}, "from some length on, and not before"


def test_prompts_that_are_none_are_named(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match=r"write \[prompt\]"):
        pipeline.generate([noise(16, 16, seed=0)], mode="image", think=True)  # type: ignore[list-item]
