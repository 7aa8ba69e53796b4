"""Every YAML in configs/ goes through the real command line and builds its model and its data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data_pipelines.datamodule import ImageDataModule, TokenDataModule
from tests.oracles.tiny_training import ROOT
from tokenizers_vq.autoencoder_module import AutoencoderModule
from tokenizers_vq.module import ImageTokenizerModule
from unimodal.model.config import ModelConfig, TransformerConfig
from unimodal.model.model import UnifiedModel
from unimodal.training.cli import TrainingCLI, run
from unimodal.training.module import TransformerModule
from unimodal.training.optim import build_optimizer

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
VOCABULARY = 2048


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Everything that `train.py fit --config ...` builds before it would train."""
    monkeypatch.setattr(TrainingCLI, "_run_subcommand", lambda self, subcommand: None)
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def built(config: Path) -> TrainingCLI:
        return run(["fit", f"--config={config}", f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu"])

    return built


def test_there_are_configs_to_test() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=[str(path.relative_to(ROOT)) for path in CONFIGS])
def test_a_config_builds_its_model_and_data(path: Path, build: Any) -> None:
    cli = build(path)
    wanted = yaml.safe_load(path.read_text())
    assert cli.trainer.max_steps == wanted["trainer"]["max_steps"] > 0
    match cli.model:
        case TransformerModule():
            _check_model(cli.model, cli.datamodule)
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


def _check_model(module: TransformerModule, data: Any) -> None:
    assert isinstance(data, TokenDataModule)
    assert data.stream.length <= module.shape["max_length"]
    with torch.device("meta"):
        branch = module.flow.shape({"latent_dim": 16, "grid": 8, "hash": ""}) if module.flow else {}
        trunk = TransformerConfig(**module.shape, mixture=branch.pop("mixture", False))
        model = UnifiedModel(ModelConfig(vocab_size=VOCABULARY, trunk=trunk, **branch))
    assert (module.flow is None) == (data.templates.latents is None)
    groups = build_optimizer(model, module.optimizer_config).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
