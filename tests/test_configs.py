"""Every YAML in configs/ goes through the real command line and builds its model and its data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data_pipelines.datamodule import ImageDataModule, TokenDataModule
from data_pipelines.spec import DataSpec
from tests.oracles.tiny_training import ROOT
from tokenizers_vq.autoencoder_module import AutoencoderModule
from tokenizers_vq.layout import FixedLayout
from tokenizers_vq.media import LATENTS, PATCHES, LatentSpec, MediaSpec, PatchSpec
from tokenizers_vq.module import ImageTokenizerModule
from tokenizers_vq.token_space import TokenSpace
from unimodal.model.model import UnifiedModel
from unimodal.training.cli import TrainingCLI, run
from unimodal.training.module import TransformerModule
from unimodal.training.optimizers.build import build_optimizer

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SPACE = TokenSpace(
    text_size=1024, text_hash="t", codebook_size=1024, image_hash="i", layout=FixedLayout(rows=8, columns=8)
)
MEDIA = {
    LATENTS: MediaSpec(name=LATENTS, width=16, sizing=LatentSpec(reduction=8, image_size=64), source="hash"),
    PATCHES: MediaSpec.of_patches(PatchSpec.of(8)),
}
"""What the shards hold that the configs train on."""


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Everything that `train.py fit --config ...` builds before it would train."""
    monkeypatch.setattr(TrainingCLI, "_run_subcommand", lambda self, subcommand: None)
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def built(config: Path) -> TrainingCLI:
        return run(["fit", f"--config={config}", f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu"])

    return built


def test_there_are_configs_to_test() -> None:
    assert {path.stem for path in CONFIGS} >= {"demo", "easy_vqa_flow", "easy_vqa_vit", "easy_vqa_kl"}


@pytest.mark.parametrize("path", CONFIGS, ids=[str(path.relative_to(ROOT)) for path in CONFIGS])
def test_a_config_builds_its_model_and_data(path: Path, build: Any) -> None:
    cli = build(path)
    wanted = yaml.safe_load(path.read_text())
    assert cli.trainer.max_steps == wanted["trainer"]["max_steps"] > 0
    match cli.model:
        case TransformerModule():
            _check_transformer(cli.model, cli.datamodule)
        case ImageTokenizerModule():
            assert isinstance(cli.datamodule, ImageDataModule)
            assert cli.model.tokenizer.image_size == cli.datamodule.policy.size
            pixels = torch.zeros(1, 3, cli.model.tokenizer.image_size, cli.model.tokenizer.image_size)
            assert cli.model.tokenizer.encode(pixels).shape == (1, cli.model.tokenizer.layout.num_codes)
        case AutoencoderModule():
            assert isinstance(cli.datamodule, ImageDataModule)
            autoencoder = cli.model.tokenizer
            assert autoencoder.image_size == cli.datamodule.policy.size
            pixels = torch.zeros(1, 3, autoencoder.image_size, autoencoder.image_size)
            grid = (autoencoder.latent_dim, autoencoder.grid, autoencoder.grid)
            assert autoencoder.encode(pixels).shape == (1, *grid)
        case other:
            pytest.fail(f"{path} builds a {type(other).__name__}, which nothing here checks")


def _check_transformer(module: TransformerModule, data: Any) -> None:
    assert isinstance(data, TokenDataModule)
    names = data.templates.media
    spec = DataSpec(space=SPACE, media={name: MEDIA[name] for name in names})
    with torch.device("meta"):
        config = module._architecture(spec)
        model = UnifiedModel(config)
    assert data.stream.length <= config.trunk.max_length
    assert set(model.branches) == set(names)
    assert (config.flow is None) == (data.templates.drawn != "latents")
    assert (config.vision is None) == (data.templates.seen != "patches")
    assert {objective.branch for objective in module.objectives} <= {None, *model.branches}
    grouped = [id(p) for group in build_optimizer(model, module.optimizer_config).param_groups for p in group["params"]]
    own = [id(parameter) for parameter in model.parameters()]
    assert sorted(grouped) == sorted(own) and len(set(grouped)) == len(own)
