"""A resumed run with other settings: they are said, and they hold; with the same ones nothing is said or changed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import Options, fit_arguments, logged
from unimodal.training.callbacks.settings import HoldSettings
from unimodal.training.cli import run
from unimodal.training.continued import changed_settings, config_before

RESUMED: Options = {
    "model__optimizer": "AdamWConfig",
    "model__optimizer__learning_rate": 0.01,
    "model__schedule__decay": "constant",
    "checkpoint__every_n_train_steps": 4,
}


def test_only_values_that_differ_are_said() -> None:
    before = {"a": {"b": 1, "c": [1, 2]}, "d": None, "trainer": {"max_steps": 5}, "ckpt_path": None, "gone": 3}
    now = {"a": {"b": 2, "c": [1, 2]}, "d": {"e": 1}, "trainer": {"max_steps": 9}, "ckpt_path": "last"}
    assert list(changed_settings(before, now)) == [
        "a.b: was 1, is 2",
        "d: was None, is {'e': 1}",
        "gone: was 3, is None",
    ]
    assert list(changed_settings(before, before)) == []


def test_a_config_that_a_kill_cut_off_is_passed_over(tmp_path: Path) -> None:
    assert config_before(tmp_path) is None
    for version, content in ((2, "a: 1"), (10, "a: 2"), (11, "a: [1, "), (12, "")):
        folder = tmp_path / "logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(content)
    assert config_before(tmp_path) == {"a": 2}


def test_a_scheduler_of_another_kind_keeps_the_rates_it_has_come_to() -> None:
    """Its state is the only place where they are; decay is the config's all the same."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.2)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    trainer: Any = SimpleNamespace(optimizers=[optimizer], lr_scheduler_configs=[SimpleNamespace(scheduler=scheduler)])
    hold, module = HoldSettings(), L.LightningModule()
    hold.on_fit_start(trainer, module)
    optimizer.param_groups[0].update(lr=0.025, weight_decay=0.9)
    hold.on_train_start(trainer, module)
    assert optimizer.param_groups[0]["lr"] == 0.025 and optimizer.param_groups[0]["weight_decay"] == 0.2


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["AdamWConfig", "MuonConfig"])
def test_a_resumed_run_has_the_rates_and_the_decay_of_its_config(
    optimizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, root = tiny_shards(tmp_path / "shards"), tmp_path / "run"
    options: Options = {**RESUMED, "model__optimizer": optimizer}
    run(fit_arguments(shards, root, **options, trainer__max_steps=4))
    capsys.readouterr()
    group = "decayed" if optimizer == "AdamWConfig" else "matrices"
    run([*fit_arguments(shards, root, **options, trainer__max_steps=8), "--ckpt_path", "last"])
    assert "resumed with other settings" not in capsys.readouterr().out
    assert [float(rate) for rate in logged(root, f"lr/{group}", 1).values()] == pytest.approx([0.01] * 4)
    changed: Options = {**options, "model__optimizer__learning_rate": 0.02, "model__optimizer__weight_decay": 0.3}
    cli = run([*fit_arguments(shards, root, **changed, trainer__max_steps=12), "--ckpt_path", "last"])
    said = capsys.readouterr().out
    assert "resumed with other settings: model.init_args.optimizer.init_args.learning_rate: was 0.01, is 0.02; " in said
    assert "weight_decay: was 0.1, is 0.3" in said
    assert [float(rate) for rate in logged(root, f"lr/{group}", 2).values()] == pytest.approx([0.02] * 4)
    assert cli.trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.3


@pytest.mark.slow
def test_a_schedule_that_is_given_anew_is_followed_from_where_the_run_is(tmp_path: Path) -> None:
    shards, root = tiny_shards(tmp_path / "shards"), tmp_path / "run"
    run(fit_arguments(shards, root, **RESUMED, trainer__max_steps=4))
    decays: Options = {**RESUMED, "model__schedule__decay": "linear", "model__schedule__floor": 0.0}
    run([*fit_arguments(shards, root, **decays, trainer__max_steps=8), "--ckpt_path", "last"])
    rates = {step: float(rate) for step, rate in logged(root, "lr/decayed", 1).items()}
    assert rates == pytest.approx({4: 0.01 * 3 / 8, 5: 0.01 * 2 / 8, 6: 0.01 / 8, 7: 0.0}, abs=1e-9) or rates == {}
