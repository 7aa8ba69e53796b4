"""`ema`: an average of the weights that is validated and bundled, leaves training as it is, and resumes exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import Options, finish, fit_arguments, full_tensor, logged, losses, start_training
from unimodal.commands.bundle import run as bundle_of
from unimodal.training.averaging import average_decay
from unimodal.training.cli import main, run

DECAY, STEPS = 0.8, 8
EMA: Options = {
    "ema__decay": DECAY,
    "trainer__max_steps": STEPS,
    "trainer__limit_val_batches": 1.0,
    "trainer__check_val_every_n_epoch": "null",
    "trainer__num_sanity_val_steps": 0,
    "trainer__val_check_interval": 4,
    "data__validation_share": 0.4,
    "model__optimizer": "MuonConfig",
    "model__optimizer__learning_rate": 0.03,
    "held_out__keep_best": "false",
    "bundle__weights": "last",
    "checkpoint__every_n_train_steps": 4,
}


class WeightsOfSteps(L.Callback):
    """Saves all weights before the first step and after each, whole ones whatever ranks share."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = Path(folder)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self._save(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del outputs, batch, batch_idx
        self._save(trainer, pl_module)

    def _save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        whole = {name: full_tensor(each.detach()).clone() for name, each in module.named_parameters()}
        if trainer.is_global_zero:
            save_file(whole, self.folder / f"{trainer.global_step}.safetensors")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", 12)


def bundled(root: Path) -> dict[str, Tensor]:
    return load_file(root / "model" / "model.safetensors")


def watched(shards: Path, root: Path, **options: str | float) -> list[str]:
    """A run whose losses and weights are written after each step."""
    root.mkdir(parents=True, exist_ok=True)
    callbacks = ["--trainer.callbacks+=tests.oracles.tiny_training.LossFile"]
    callbacks += [f"--trainer.callbacks.path={root / 'losses'}"]
    callbacks += ["--trainer.callbacks+=tests.training.test_averaging.WeightsOfSteps"]
    callbacks += [f"--trainer.callbacks.folder={root}"]
    return [*fit_arguments(shards, root, **{**EMA, **options}), *callbacks]


def slow_average(root: Path) -> dict[str, Tensor]:
    """In float64, from the weights of every step."""
    weights = [load_file(root / f"{step}.safetensors") for step in range(STEPS + 1)]
    average = {name: each.double() for name, each in weights[0].items()}
    for step, after in enumerate(weights[1:]):
        decay = average_decay(DECAY, step)
        average = {name: decay * each + (1 - decay) * after[name].double() for name, each in average.items()}
    return {name.removeprefix("model."): each for name, each in average.items()}


def test_decay_grows_to_its_value() -> None:
    assert [average_decay(0.9, n) for n in (0, 10, 1000)] == [0.1, 11 / 20, 0.9]


@pytest.mark.slow
def test_the_average_is_bundled_and_validated_and_training_is_as_without(shards: Path, tmp_path: Path) -> None:
    run(watched(shards, tmp_path / "with"))
    run(watched(shards, tmp_path / "without", ema__decay=0.0))
    assert losses(tmp_path / "with" / "losses") == losses(tmp_path / "without" / "losses")
    found, last = bundled(tmp_path / "with"), bundled(tmp_path / "without")
    for name, expected in slow_average(tmp_path / "with").items():
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-7, msg=name)
        assert not torch.equal(found[name], last[name]), name
    bundle_of(tmp_path / "with" / "checkpoints" / "last.ckpt", shards, tmp_path / "of_checkpoint")
    of_checkpoint = load_file(tmp_path / "of_checkpoint" / "model.safetensors")
    assert all(torch.equal(of_checkpoint[name], found[name]) for name in found)
    bundle: Options = {**EMA, "model__start__bundle": str(tmp_path / "with" / "model")}
    still: Options = {"model__optimizer": "AdamWConfig", "model__optimizer__learning_rate": 0.0}
    run(fit_arguments(shards, tmp_path / "again", **{**bundle, **still, "ema__decay": 0.0}))
    of_bundle = float(logged(tmp_path / "again", "val/loss")[STEPS - 1])
    averaged, plain = (float(logged(tmp_path / n, "val/loss")[STEPS - 1]) for n in ("with", "without"))
    assert averaged == pytest.approx(of_bundle, abs=1e-6) and abs(averaged - plain) > 1e-4


@pytest.mark.slow
def test_a_resumed_run_has_the_average_of_the_unbroken_one(shards: Path, tmp_path: Path) -> None:
    constant: Options = {"model__schedule__decay": "constant"}
    run(watched(shards, tmp_path / "whole", **constant))
    run(watched(shards, tmp_path / "two", trainer__max_steps=4, **constant))
    run([*watched(shards, tmp_path / "two", **constant), "--ckpt_path=last"])
    found, expected = bundled(tmp_path / "two"), bundled(tmp_path / "whole")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_an_average_begins_in_a_resumed_run_where_the_checkpoint_has_none(shards: Path, tmp_path: Path) -> None:
    run(watched(shards, tmp_path, trainer__max_steps=4, ema__decay=0.0))
    run([*watched(shards, tmp_path), "--ckpt_path=last"])
    last = load_file(tmp_path / f"{STEPS}.safetensors")["model.trunk.embedding.weight"]
    middle = load_file(tmp_path / "4.safetensors")["model.trunk.embedding.weight"]
    found = bundled(tmp_path)["trunk.embedding.weight"]
    assert 0 < (found - last).norm() < (middle - last).norm()


@pytest.mark.parametrize("strategy", [pytest.param(s, marks=pytest.mark.ranks) for s in ("ddp", "sharded")])
def test_two_ranks_keep_one_average_and_resume_it(strategy: str, shards: Path, tmp_path: Path) -> None:
    ranks: Options = {"trainer__devices": 2, "trainer__strategy": strategy, "model__schedule__decay": "constant"}
    for name, more in (("whole", []), ("two", ["--trainer.max_steps=4"]), ("two", ["--ckpt_path=last"])):
        process = start_training([*watched(shards, tmp_path / name, **ranks), *more])
        output = finish(process, 240)
        assert process.returncode == 0, output
    whole, two = bundled(tmp_path / "whole"), bundled(tmp_path / "two")
    for name, expected in slow_average(tmp_path / "whole").items():
        torch.testing.assert_close(whole[name].double(), expected, rtol=1e-5, atol=1e-7, msg=name)
        assert torch.equal(whole[name], two[name]), name
    bundle_of(tmp_path / "two" / "checkpoints" / "last.ckpt", shards, tmp_path / "of_checkpoint")
    of_checkpoint = load_file(tmp_path / "of_checkpoint" / "model.safetensors")
    assert all(torch.equal(of_checkpoint[name], two[name]) for name in two)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ema__decay": 1.0}, "ema.decay lies between 0 and 1"),
        ({"trainer__precision": "bf16-true"}, "an average of bf16-true weights would not move"),
        ({"model": "ImageTokenizerModule"}, "ema.decay is for training the transformer"),
    ],
)
def test_averages_that_cannot_be_are_one_line(
    options: Options, words: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "model" in options:
        arguments = ["fit", f"--trainer.default_root_dir={tmp_path}", "--ema.decay=0.9"]
        arguments += ["--config=configs/tokenizer/demo.yaml"]
    else:
        arguments = fit_arguments(shards, tmp_path, **{**EMA, **options})
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2 and words in capsys.readouterr().err.strip().splitlines()[-1]
