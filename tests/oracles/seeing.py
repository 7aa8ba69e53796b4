"""A run that learns to see, and the questions that show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.oracles.tiny import PAINTS, tiny_picture
from tests.oracles.tiny_training import ADAMW, fit_arguments, logged
from unimodal.generation.pipeline import Pipeline, load
from unimodal.training.cli import run


def learns_to_name_what_it_sees(shards: Path, root: Path, **options: str | float) -> Pipeline:
    """Train for 300 steps and ask for the colours of eight pictures; six answers are right."""
    settings: dict[str, Any] = {**options, **ADAMW, "data__templates__image_first": 1.0, "trainer__max_steps": 300}
    run(fit_arguments(shards, root, **settings))
    text = logged(root, "train/loss_text")
    assert float(text[299]) < 0.3 * float(text[0])
    pipeline = load(root / "model")
    prompts: list[Any] = [[tiny_picture(index), "what color is it?"] for index in range(8)]
    answers = pipeline.generate(prompts, mode="text", temperature=0.0, max_new_tokens=8)
    assert sum(answer == [PAINTS[index]] for index, answer in enumerate(answers)) >= 6, answers
    return pipeline
