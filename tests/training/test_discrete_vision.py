"""A discrete model with a ViT: pictures are seen as patches and drawn as codes, by config alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.oracles.seeing import learns_to_name_what_it_sees
from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import VISION, Options, fit_arguments, logged
from unimodal.generation.context import read_prompt
from unimodal.training.cli import main, run


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


EYES: dict[str, Options] = {
    "siglip": VISION,
    "moonvit": {
        **VISION,
        "model__vision": "{dim: 16, num_layers: 1, num_heads: 2, hidden_dim: 24, encoder: moonvit, merge: 2, "
        "connector: pixel_shuffle}",
    },
    "resampler": {
        **VISION,
        "model__vision": "{dim: 16, num_layers: 1, num_heads: 2, hidden_dim: 24, connector: resampler}",
        "data__templates__resampled_tokens": 4,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("eyes", EYES)
def test_a_discrete_model_learns_to_name_what_it_sees_and_draws_codes(eyes: str, shards: Path, tmp_path: Path) -> None:
    """Codes of a picture that is asked about are nowhere read, so right answers come through the ViT."""
    pipeline = learns_to_name_what_it_sees(shards, tmp_path, **EYES[eyes])
    ((drawn,),) = pipeline.generate(["a red picture"], mode="image", guidance=2.0)
    assert isinstance(drawn, Image.Image) and drawn.size == (16, 16)
    config, wide = pipeline.decode_config("text"), Image.new("RGB", (40, 8), "red")
    lengths = set[int]()
    for picture in (wide, wide.resize((8, 8))):
        (request,) = pipeline.requests([[picture, "what color is it?"]], config, 0)
        lengths.add(len(read_prompt(request, pipeline.token_space, pipeline.reading).piece()))
    assert (len(lengths) == 1) == (eyes == "resampler"), "other shapes take other numbers of tokens"


def test_a_resampler_and_its_number_of_tokens_go_together(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = fit_arguments(shards, tmp_path, **{**EYES["resampler"], "data__templates__resampled_tokens": 0})
    with pytest.raises(SystemExit, match="2"):
        main(given)
    assert "data.templates.resampled_tokens" in capsys.readouterr().err
