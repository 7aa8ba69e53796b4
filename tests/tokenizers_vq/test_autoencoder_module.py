"""Training of the image autoencoder: the loss falls, latents are measured, and a resumed run goes on as if unbroken."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data_pipelines.images import to_image
from tests.oracles.pictures import BACKBONES, SIZE, random_images
from tests.oracles.tiny_training import logged, losses
from tokenizers_vq.autoencoder import open_autoencoder
from tokenizers_vq.autoencoder_module import AutoencoderModule
from tokenizers_vq.discriminator import AdversarialLossConfig
from tokenizers_vq.metrics import psnr
from tokenizers_vq.reconstruction_module import TokenizerOptimizerConfig
from unimodal.training.cli import run

STEPS, LAST_SAVED = 12, 4
PICTURES = 40


class Pictures(L.LightningDataModule):
    """Training batches that are all white, and the pictures as they are."""

    def train_dataloader(self) -> DataLoader[Tensor]:
        return loader(torch.ones(8, 3, SIZE, SIZE))

    def predict_dataloader(self) -> DataLoader[Tensor]:
        return loader(random_images(PICTURES))


def loader(images: Tensor) -> DataLoader[Tensor]:
    return DataLoader(list(images.split(8)), batch_size=None)  # pyright: ignore[reportArgumentType]


def make_module(**options: Any) -> AutoencoderModule:
    optimizer = TokenizerOptimizerConfig(learning_rate=3e-3, warmup_steps=2)
    shape = {"backbone": BACKBONES["patch"], "latent_dim": 4}
    return AutoencoderModule(image_size=SIZE, optimizer=optimizer, **{**shape, **options})


def make_trainer(folder: Path, steps: int = 4) -> L.Trainer:
    return L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
    )


@pytest.fixture(autouse=True)
def _no_other_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures with metadata.jsonl."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for index, pixels in enumerate(random_images(PICTURES)):
        to_image(pixels).save(folder / f"{index}.png")
        rows.append(json.dumps({"file_name": f"{index}.png", "text": "a square"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def fit_arguments(pictures: Path, root: Path, **options: Any) -> list[str]:
    settings = {
        "trainer.max_steps": STEPS,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.default_root_dir": root,
        "trainer.log_every_n_steps": 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.val_check_interval": 8,
        "trainer.check_val_every_n_epoch": "null",
        "checkpoint.every_n_train_steps": LAST_SAVED,
        "model": "AutoencoderModule",
        "model.image_size": SIZE,
        "model.latent_dim": 4,
        "model.backbone": "tokenizers_vq.backbones.PatchBackboneConfig",
        "model.backbone.width": 16,
        "model.backbone.depth": 1,
        "model.optimizer.learning_rate": 3e-3,
        "model.optimizer.warmup_steps": 2,
        "model.out": root / "autoencoder",
        "data": "ImageDataModule",
        "data.source": "imagefolder",
        "data.path": pictures,
        "data.image_size": SIZE,
        "data.batch_size": 8,
        **{name.replace("__", "."): value for name, value in options.items()},
    }
    return ["fit", "--seed_everything=7", *(f"--{name}={value}" for name, value in settings.items())]


@pytest.mark.slow
def test_training_lowers_the_loss_and_leaves_a_measured_autoencoder(pictures: Path, tmp_path: Path) -> None:
    recorder = "tests.oracles.tiny_training.LossFile"
    extra = [f"--trainer.callbacks={recorder}", f"--trainer.callbacks.path={tmp_path / 'losses.txt'}"]
    cli = run([*fit_arguments(pictures, tmp_path, trainer__max_steps=100), *extra])
    steps = [float.fromhex(loss) for _, loss in losses(tmp_path / "losses.txt")]
    assert len(steps) == 100 and sum(steps[-4:]) < 0.5 * sum(steps[:4])
    opened = open_autoencoder(tmp_path / "autoencoder")
    assert opened.hash == cli.model.tokenizer.hash
    latents = opened.encode(torch.cat(list(cli.datamodule.predict_dataloader())))
    assert latents.shape == (PICTURES, 4, 2, 2)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3), correction=0), torch.ones(4), rtol=0, atol=1e-4)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        f"reconstructions-{step:06d}.png" for step in range(8, 100, 8)
    ]


@pytest.mark.slow
def test_a_resumed_run_has_the_losses_and_weights_of_an_unbroken_one(pictures: Path, tmp_path: Path) -> None:
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    run(fit_arguments(pictures, unbroken, checkpoint__save_top_k=-1))
    checkpoint = unbroken / "checkpoints" / f"epoch=0-step={LAST_SAVED}.ckpt"
    run([*fit_arguments(pictures, resumed), f"--ckpt_path={checkpoint}"])
    expected, found = (logged(root, "train/loss") for root in (unbroken, resumed))
    assert sorted(expected) == list(range(STEPS)) and len(set(expected.values())) == STEPS
    assert found == {step: expected[step] for step in range(LAST_SAVED, STEPS)}
    assert open_autoencoder(resumed / "autoencoder").hash == open_autoencoder(unbroken / "autoencoder").hash


@pytest.mark.slow
def test_a_resumed_run_has_the_rates_of_its_config_the_discriminators_too(pictures: Path, tmp_path: Path) -> None:
    options = {
        "model__adversarial__start": 2,
        "model__adversarial__width": 8,
        "model__adversarial__learning_rate": 1e-3,
    }
    run(fit_arguments(pictures, tmp_path, **options, trainer__max_steps=LAST_SAVED))
    raised = {**options, "model__adversarial__learning_rate": 4e-3, "model__optimizer__learning_rate": 6e-3}
    cli = run([*fit_arguments(pictures, tmp_path, **raised), "--ckpt_path=last"])
    of_network, of_discriminator = (optimizer.param_groups[0] for optimizer in cli.trainer.optimizers)
    assert of_network["initial_lr"] == 6e-3 and of_discriminator["lr"] == 4e-3


def test_latents_are_measured_over_the_pictures_as_they_are(tmp_path: Path) -> None:
    module = make_module(out=tmp_path / "autoencoder")
    make_trainer(tmp_path).fit(module, datamodule=Pictures())
    latents = open_autoencoder(tmp_path / "autoencoder").encode(random_images(PICTURES))
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3), correction=0), torch.ones(4), rtol=0, atol=1e-4)


def test_without_a_data_module_there_is_nothing_to_measure_over_and_training_does_not_begin(tmp_path: Path) -> None:
    module = make_module(out=tmp_path / "autoencoder")
    before = module.tokenizer.hash
    with pytest.raises(ValueError, match="over the pictures of a data module"):
        make_trainer(tmp_path).fit(module, loader(random_images(16)))
    assert module.tokenizer.hash == before
    make_trainer(tmp_path).fit(make_module(), loader(random_images(16)))


def test_validation_logs_how_good_and_how_noisy_the_latents_are(tmp_path: Path) -> None:
    module, trainer, images = make_module(), make_trainer(tmp_path), random_images(8)
    (logged_values,) = trainer.validate(module, loader(images), verbose=False)
    with torch.no_grad():
        posterior = module.tokenizer.posterior(images)
    assert set(logged_values) == {"val/psnr", "val/ssim", "val/kl", "val/noise"}
    assert logged_values["val/kl"] == pytest.approx(float(posterior.kl.mean()), rel=1e-5)
    decoded = module.tokenizer.decode(module.tokenizer.encode(images))
    assert logged_values["val/psnr"] == pytest.approx(float(psnr(decoded, images).mean()), rel=1e-5)
    shares = [float(posterior.std[:, channel].mean() / posterior.mean[:, channel].std()) for channel in range(4)]
    assert logged_values["val/noise"] == pytest.approx(sum(shares) / 4, rel=1e-5)


@pytest.mark.slow
def test_more_weight_on_kl_leaves_less_of_it(tmp_path: Path) -> None:
    found = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        module = make_module(kl_weight=weight)
        make_trainer(tmp_path, steps=60).fit(module, loader(random_images(64)))
        found.append(module.tokenizer.posterior(random_images(8)).kl.mean().item())
    assert found[1] < 0.2 * found[0]


def test_a_discriminator_joins_as_it_does_for_a_tokenizer(tmp_path: Path) -> None:
    module, trainer = make_module(adversarial=AdversarialLossConfig(start=2, width=8)), make_trainer(tmp_path)
    trainer.fit(module, loader(random_images(64)))
    assert {"train/reconstruction", "train/kl", "train/adversarial", "train/discriminator"} <= set(
        trainer.callback_metrics
    )


def test_prediction_gives_latents(tmp_path: Path) -> None:
    module = make_module()
    predicted = make_trainer(tmp_path).predict(module, loader(random_images(8)))
    assert predicted is not None and isinstance(predicted[0], Tensor)
    assert torch.equal(predicted[0], module.tokenizer.encode(random_images(8)))


def test_a_weight_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0, got -1"):
        make_module(kl_weight=-1.0)
