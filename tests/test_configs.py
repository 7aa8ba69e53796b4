"""Every YAML in configs/ goes through the real command line and builds its model and its data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import unimodal
from data_pipelines.datamodule import ImageDataModule, TokenDataModule
from data_pipelines.spec import DataSpec
from tests.oracles.tiny import tiny_picture_folder, tiny_pipeline, tiny_shards
from tests.oracles.tiny_training import ROOT, logged
from tokenizers_vq.autoencoder_module import AutoencoderModule
from tokenizers_vq.layout import FixedLayout
from tokenizers_vq.media import LATENTS, PATCHES, LatentSpec, MediaSpec, PatchSpec
from tokenizers_vq.module import ImageTokenizerModule
from tokenizers_vq.token_space import TokenSpace
from unimodal.model.model import UnifiedModel
from unimodal.training.cli import TrainingCLI, run
from unimodal.training.module import TransformerModule
from unimodal.training.optimizers.build import build_optimizer
from unimodal.training.rl.data import PromptDataModule
from unimodal.training.rl.module import PolicyModule
from unimodal.training.start import bundle_config

CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "curriculum")
SHORT = "--trainer.max_steps=2 --trainer.log_every_n_steps=1 --trainer.limit_val_batches=0 --samples.every=0".split()
SHORT += ["--trainer.accelerator=cpu"]
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


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=[str(path.relative_to(ROOT)) for path in CONFIGS])
def test_a_config_builds_its_model_and_data(path: Path, build: Any) -> None:
    cli = build(path)
    wanted = yaml.safe_load(path.read_text())
    assert cli.trainer.max_steps == wanted["trainer"]["max_steps"] > 0
    match cli.model:
        case PolicyModule():
            assert isinstance(cli.datamodule, PromptDataModule)
            asked = {name for prompts in cli.datamodule.prompts + cli.datamodule.held_out for name in prompts.rewards}
            assert asked <= cli.model.rewards.keys()
        case TransformerModule():
            assert isinstance(cli.datamodule, TokenDataModule)
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
    names = data.templates.media
    spec = DataSpec(space=SPACE, media={name: MEDIA[name] for name in names})
    with torch.device("meta"):
        config = module.architecture(spec, bundle_config(module.start))
        model = UnifiedModel(config)
    assert data.stream.length <= config.trunk.max_length
    assert set(model.branches) == set(names)
    assert (config.flow is None) == (data.templates.drawn != "latents")
    assert (config.vision is None) == (data.templates.seen != "patches")
    assert {objective.branch for objective in module.objectives} <= {None, *model.branches}
    grouped = [id(p) for group in build_optimizer(model, module.optimizer_config).param_groups for p in group["params"]]
    own = [id(parameter) for parameter in model.parameters()]
    assert sorted(grouped) == sorted(own) and len(set(grouped)) == len(own)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With everything that any config trains on: codes, latents, and pixels for patches of 8."""
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", latents=True, patch=8)


def of(folder: str) -> list[Path]:
    return [path for path in CONFIGS if path.parent.name == folder]


@pytest.mark.slow
@pytest.mark.parametrize("path", of("run"), ids=lambda path: path.stem)
def test_a_config_of_a_run_trains_its_whole_model_for_two_steps(path: Path, shards: Path, tmp_path: Path) -> None:
    """At its full size and on rows of its length, but few of them; uncompiled, which takes less time here."""
    few = [f"--data.init_args.shards=[{shards}]", "--data.init_args.stream.rows=2", "--model.init_args.compile=false"]
    wanted = yaml.safe_load(path.read_text())
    if "bundle" in wanted["model"]["init_args"].get("start", {}):
        tiny_pipeline(max_length=wanted["data"]["init_args"]["stream"]["length"]).save(tmp_path / "start")
        few.append(f"--model.init_args.start.bundle={tmp_path / 'start'}")
    cli = run(["fit", f"--config={path}", *SHORT, *few, f"--trainer.default_root_dir={tmp_path}"])
    losses = [float(loss) for loss in logged(tmp_path, "train/loss").values()]
    assert cli.trainer.global_step == 2 and all(0 < loss < 20 for loss in losses)
    parameters = dict(cli.model.named_parameters())
    assert [name for name, parameter in parameters.items() if not parameter.isfinite().all()] == []
    config = unimodal.load(tmp_path / "model").model.config
    assert config.trunk.max_length >= wanted["data"]["init_args"]["stream"]["length"]
    templates = wanted["data"]["init_args"].get("templates", {})
    branches = (templates.get("drawn") == "latents", templates.get("seen") == "patches")
    assert (config.flow is not None, config.vision is not None) == branches


@pytest.mark.slow
@pytest.mark.parametrize("path", of("tokenizer"), ids=lambda path: path.stem)
def test_a_config_of_a_tokenizer_trains_it_for_two_steps(path: Path, tmp_path: Path) -> None:
    pictures = tiny_picture_folder(tmp_path / "pictures")
    few = ["--data.init_args.source=imagefolder", f"--data.init_args.path={pictures}", "--data.init_args.batch_size=4"]
    out = f"--model.init_args.out={tmp_path / 'out'}"
    cli = run(["fit", f"--config={path}", *SHORT, *few, out, f"--trainer.default_root_dir={tmp_path}"])
    assert cli.trainer.global_step == 2
    weights: list[Tensor] = list(cli.model.parameters())
    assert all(weight.isfinite().all() for weight in weights) and (tmp_path / "out").is_dir()
