"""Training of the image tokenizer through Lightning: the loss falls, terms are logged, a collapse is told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.oracles.pictures import BACKBONES, QUANTIZERS, SIZE, projection, random_images
from tokenizers_vq.discriminator import AdversarialLossConfig
from tokenizers_vq.image_tokenizer import ImageTokenizer
from tokenizers_vq.module import ImageTokenizerModule, TokenizerOptimizerConfig

ADVERSARIAL = AdversarialLossConfig(start=1, weight=0.5, width=8)


class Recorder(L.Callback):
    """Keeps what was logged after every batch."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def make_module(**options: Any) -> ImageTokenizerModule:
    optimizer = TokenizerOptimizerConfig(learning_rate=3e-3, warmup_steps=2)
    shape = {"backbone": BACKBONES["patch"], "quantizer": QUANTIZERS["vq"]}
    return ImageTokenizerModule(image_size=SIZE, optimizer=optimizer, **{**shape, **options})


def fit(module: ImageTokenizerModule, steps: int, tmp_path: Path) -> tuple[Recorder, L.Trainer]:
    recorder = Recorder()
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
    )
    batches = list(random_images(128).split(32))
    trainer.fit(module, loader(batches), loader([random_images(32, seed=1)]))
    return recorder, trainer


def loader(batches: list[Tensor]) -> DataLoader[Tensor]:
    return DataLoader(batches, batch_size=None)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", sorted(QUANTIZERS))
def test_the_loss_falls_and_the_tokenizer_is_left_where_out_says(tmp_path: Path, quantizer: str) -> None:
    module = make_module(quantizer=QUANTIZERS[quantizer], out=tmp_path / "tok")
    steps = fit(module, 100, tmp_path)[0].steps
    first, last = (sum(step["train/reconstruction"] for step in part) / 4 for part in (steps[:4], steps[-4:]))
    assert last < 0.7 * first
    assert steps[-1]["train/psnr"] > steps[0]["train/psnr"]
    left = ImageTokenizer.open(tmp_path / "tok")
    assert left.hash == module.tokenizer.hash


def test_validation_logs_how_good_and_how_varied_the_codes_are(tmp_path: Path) -> None:
    _, trainer = fit(make_module(), 4, tmp_path)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    assert set(logged) == {"val/psnr", "val/ssim", "val/codebook_use", "val/perplexity"}
    assert 0 < logged["val/codebook_use"] <= 1 <= logged["val/perplexity"] <= 16


def test_with_a_discriminator_both_networks_learn_once_it_has_joined(tmp_path: Path) -> None:
    module = make_module(adversarial=ADVERSARIAL)
    assert module.discriminator is not None
    before = [parameter.detach().clone() for parameter in module.discriminator.parameters()]
    steps = fit(module, 12, tmp_path)[0].steps
    assert "train/adversarial" not in steps[0] and "train/discriminator" in steps[1]
    assert all("train/adversarial" in step for step in steps[1:])
    after = module.discriminator.parameters()
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert steps[-1]["train/reconstruction"] < steps[0]["train/reconstruction"]


def test_a_discriminator_does_not_shorten_the_training(tmp_path: Path) -> None:
    assert len(fit(make_module(), 6, tmp_path)[0].steps) == 6
    assert len(fit(make_module(adversarial=ADVERSARIAL), 6, tmp_path)[0].steps) == 6


def test_a_collapsed_codebook_sounds_the_alarm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = make_module(quantizer=QUANTIZERS["fsq"])
    with torch.no_grad():
        for name, value in (("weight", 0.0), ("bias", 5.0)):
            getattr(projection(module.tokenizer), name).fill_(value)
    with caplog.at_level(logging.WARNING):
        fit(module, 4, tmp_path)
    assert "the codebook has collapsed: 1.7% of 60 codes occur" in caplog.text


def test_a_codebook_in_use_sounds_no_alarm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _, trainer = fit(make_module(), 4, tmp_path)
    assert "val/codebook_use" in trainer.callback_metrics
    assert "collapsed" not in caplog.text


def test_prediction_gives_codes(tmp_path: Path) -> None:
    module = make_module()
    _, trainer = fit(module, 2, tmp_path)
    predicted = trainer.predict(module, loader([random_images(4)]))
    assert predicted is not None and isinstance(predicted[0], Tensor)
    assert torch.equal(predicted[0], module.tokenizer.encode(random_images(4)))


def test_a_rate_that_decays_over_no_number_of_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the learning rate decays over trainer\.max_steps, which is not set"):
        fit(make_module(), -1, tmp_path)
