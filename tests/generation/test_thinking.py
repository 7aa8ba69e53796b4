"""Thinking: the plan stands in the picture's context, for both branches, and wrong use is named."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.oracles.pictures import noise
from tests.oracles.tiny import tiny_flow_pipeline, tiny_pipeline
from unimodal.generation.flow_sampling import FlowSamplingConfig
from unimodal.generation.pipeline import Pipeline
from unimodal.generation.thinking import ThinkingConfig

PROMPTS: list[Any] = ["a red circle", [noise(16, 16, seed=0), "make it blue"], ["a", ["yes"], "b"]]
THINKING = ThinkingConfig(instruction="first plan: ", room=6, temperature=1.0)


@pytest.fixture(scope="module", params=["codes", "latents"])
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return tiny_pipeline(max_length=128) if request.param == "codes" else tiny_flow_pipeline()


def settings(pipeline: Pipeline) -> dict[str, Any]:
    return {"flow": FlowSamplingConfig(steps=3)} if pipeline.transformer.flow else {}


def test_a_picture_is_drawn_from_the_prompt_and_the_plan(pipeline: Pipeline) -> None:
    """By hand: the plan is a text answer, and its ids follow the prompt's when the picture is drawn."""
    more = settings(pipeline)
    answers = pipeline.generate(PROMPTS, mode="image", think=THINKING, seed=4, guidance=2.0, **more)
    config = pipeline.decode_config("image", guidance=2.0, **more)
    eos = pipeline.token_space.specials.eos
    for number, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        told = ["first plan: ", *([prompt] if isinstance(prompt, str) else prompt)]
        (plan,) = pipeline.generate([told], mode="text", max_new_tokens=6, temperature=1.0, seed=4 + number)
        said = [token for token in plan.ids if token != eos]
        (request,) = pipeline.requests([told], config, 4 + number)
        request.prompt.extend(said)  # pyright: ignore[reportAttributeAccessIssue]
        (drawn,) = pipeline.finished(pipeline.engine.decode([request]))
        assert answer.ids == said + drawn.ids and len(answer.log_probs) == len(answer.ids)
        assert answer[:-1] == [part for part in plan if part]
        assert isinstance(answer[-1], Image.Image) and answer[-1].tobytes() == drawn[0].tobytes()  # type: ignore[union-attr]


def test_the_plan_changes_the_picture(pipeline: Pipeline) -> None:
    more = settings(pipeline)
    pictures = set()
    for seed in range(3):
        told = ThinkingConfig(instruction="first plan: ", room=6, temperature=5.0)
        (answer,) = pipeline.generate(["a"], mode="image", think=told, seed=seed, temperature=0.0, **more)
        pictures.add((tuple(answer.ids[:-6]), answer[-1].tobytes()))  # type: ignore[union-attr]
    assert len({plan for plan, _ in pictures}) == len({picture for _, picture in pictures}) == 3


def test_thinking_is_refused_where_it_makes_no_sense(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="goes with mode 'image'"):
        pipeline.generate(["a"], mode="text", think=True)
    with pytest.raises(ValueError, match="does not go with stream"):
        pipeline.generate(["a"], mode="image", think=True, stream=True)
    for wrong in ({"room": 0}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match="plan"):
            ThinkingConfig(**wrong)
