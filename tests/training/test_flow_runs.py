"""Runs with the flow branch, as their command lines ask for them: what is learnt, what is built, what is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import unimodal
from data_pipelines.datamodule import TokenDataModule
from data_pipelines.forms.latents import LatentTemplateConfig
from data_pipelines.planning import StreamConfig
from data_pipelines.templates import TemplateConfig
from tests.oracles import tiny
from tests.oracles.tiny_training import FLOW, fit_arguments, logged
from unimodal.training.cli import run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_shards(tmp_path_factory.mktemp("data") / "shards", latents=True)


@pytest.mark.slow
@pytest.mark.parametrize(("image_first", "learnt", "absent"), [(1.0, "text", "flow"), (0.0, "flow", "image")])
def test_what_a_run_shows_is_learnt_and_what_it_lacks_has_no_loss(
    shards: Path, tmp_path: Path, image_first: float, learnt: str, absent: str
) -> None:
    """Questions alone have no picture to draw; drawings have no codes to learn."""
    options = {**FLOW, "data__templates__image_first": image_first, "data__templates__latents": "{whole: 0.0}"}
    adamw = {"model__optimizer": "AdamWConfig", "model__optimizer__learning_rate": 0.01}
    run(fit_arguments(shards, tmp_path, trainer__max_steps=120, **options, **adamw))
    found = [float(value) for value in logged(tmp_path, f"train/loss_{learnt}").values()]
    assert sum(found[-20:]) < 0.7 * sum(found[:20])
    assert {float(value) for value in logged(tmp_path, f"train/loss_{absent}").values()} == {0.0}


@pytest.mark.parametrize("mixture", [True, False])
def test_a_run_builds_the_flow_branch_that_it_is_asked_for(shards: Path, tmp_path: Path, mixture: bool) -> None:
    asked = {"time_channels": 8, "pos_embed_period": 100.0, "axial_rope_max": 1.5}
    flow = ", ".join(f"{name}: {value}" for name, value in {**asked, "mixture": str(mixture).lower()}.items())
    run(fit_arguments(shards, tmp_path, trainer__max_steps=1, **{**FLOW, "model__flow": f"{{{flow}}}"}))
    pipeline = unimodal.load(tmp_path / "model")
    config = pipeline.model.config
    assert config.flow is not None and {name: getattr(config.flow, name) for name in asked} == asked
    assert config.trunk.mixture == any(".generation." in name for name in pipeline.model.state_dict()) == mixture
    assert pipeline.autoencoder is not None
    assert (config.flow.latent_dim, config.flow.autoencoder) == (3, pipeline.autoencoder.hash)
    assert len(pipeline.generate(["a red picture"], mode="image", steps=2)[0]) == 1


@pytest.mark.slow
def test_predictions_depend_on_the_latents_of_what_they_read(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same pictures through another autoencoder: the same ids, other latents."""
    monkeypatch.setattr(tiny, "tiny_autoencoder", lambda original=tiny.tiny_autoencoder: original(seed=5))
    others = tiny.tiny_shards(tmp_path / "others", latents=True)
    module = run(fit_arguments(shards, tmp_path / "run", trainer__max_steps=20, **FLOW)).model.eval()

    def predicted(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of the documents, and what is predicted to come next."""
        templates = TemplateConfig(image_first=0.0, drawn="latents", latents=LatentTemplateConfig(whole=1.0))
        data = TokenDataModule([str(folder)], StreamConfig(length=48, rows=4), templates)
        data.setup("predict")
        batch = next(iter(data.predict_dataloader()))
        with torch.no_grad():
            return batch.tokens, module.predict_step(batch, 0)

    (tokens, before), (same, after) = predicted(shards), predicted(others)
    assert torch.equal(tokens, same) and before.shape == tokens.shape
    assert torch.equal(before, predicted(shards)[1])
    assert not torch.equal(before, after)
