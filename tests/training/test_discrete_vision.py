"""A discrete model with a ViT: pictures are seen as patches and drawn as codes, by config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.oracles.tiny import PAINTS, tiny_picture, tiny_shards
from tests.oracles.tiny_training import ADAMW, VISION, fit_arguments, logged
from unimodal.generation.pipeline import load
from unimodal.training.cli import run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", patch=4)


@pytest.mark.slow
def test_the_vit_gets_a_gradient_and_codes_are_learnt(shards: Path, tmp_path: Path) -> None:
    for steps in (0, 3):
        run(fit_arguments(shards, tmp_path / str(steps), trainer__max_steps=max(steps, 1), **VISION))
    first, later = (load_file(tmp_path / str(steps) / "model" / "model.safetensors") for steps in (0, 3))
    assert any(name.startswith("branches.patches.") for name in first) and "heads.velocity.weight" not in first
    moved = [name for name in first if not torch.equal(first[name], later[name])]
    assert {name.split(".")[0] for name in moved} == {"trunk", "branches", "heads"}
    assert all(float(loss) > 0 for loss in logged(tmp_path / "3", "train/loss_image").values())


@pytest.mark.slow
def test_a_discrete_model_learns_to_name_what_it_sees_and_draws_codes(shards: Path, tmp_path: Path) -> None:
    """Codes of a picture that is asked about are nowhere read, so right answers come through the ViT."""
    options: dict[str, Any] = {**VISION, **ADAMW, "data__templates__image_first": 1.0, "trainer__max_steps": 200}
    run(fit_arguments(shards, tmp_path, **options))
    text = logged(tmp_path, "train/loss_text")
    assert float(text[199]) < 0.3 * float(text[0])
    pipeline = load(tmp_path / "model")
    prompts: list[Any] = [[tiny_picture(index), "what color is it?"] for index in range(8)]
    answers = pipeline.generate(prompts, mode="text", temperature=0.0, max_new_tokens=8)
    assert sum(answer == [PAINTS[index]] for index, answer in enumerate(answers)) >= 6, answers
    ((drawn,),) = pipeline.generate(["a red picture"], mode="image", guidance=2.0)
    assert isinstance(drawn, Image.Image) and drawn.size == (16, 16)
