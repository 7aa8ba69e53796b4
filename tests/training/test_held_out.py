"""A run that memorises is warned, and its best weights are bundled; one that does not is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import Options, finish, fit_arguments, logged, start_training
from unimodal.training.callbacks.held_out import HeldOut, HeldOutLosses, LowestLoss
from unimodal.training.cli import main, run

WATCHED: Options = {
    "trainer__limit_val_batches": 1.0,
    "trainer__check_val_every_n_epoch": "null",
    "trainer__num_sanity_val_steps": 0,
    "data__validation_share": 0.4,
}
MEMORISES: Options = {
    **WATCHED,
    "trainer__max_steps": 60,
    "trainer__val_check_interval": 10,
    "model__optimizer": "AdamWConfig",
    "model__optimizer__learning_rate": 0.03,
    "model__schedule__decay": "constant",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of random codes: what is held out cannot be learnt."""
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", 12)


def weights(folder: Path) -> dict[str, object]:
    return {name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.mark.slow
def test_a_model_that_memorises_is_warned_of_and_its_best_weights_are_taken(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(fit_arguments(shards, tmp_path, **MEMORISES))
    said = capsys.readouterr().out
    held_out = {step: float(value) for step, value in logged(tmp_path, "val/loss").items()}
    best = min(held_out, key=held_out.__getitem__)
    assert list(held_out)[-1] > best, "it did not memorise"
    assert said.count("held out, step") == 6 and said.count("warning: the held-out loss of image codes turned") == 1
    assert f"best held-out loss: {held_out[best]:.3f}, at step {best + 1}" in said
    taken, kept, last = (weights(tmp_path / name) for name in ("model", "best", "last"))
    assert taken == kept != last
    plain = tmp_path / "plain"
    run(fit_arguments(shards, plain, bundle__weights="last", **MEMORISES))
    assert weights(plain / "model") == last and not (plain / "last").exists()


@pytest.mark.slow
def test_a_resumed_run_compares_with_the_lowest_loss_of_before(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: Options = {**MEMORISES, "checkpoint__every_n_train_steps": 10}
    run(fit_arguments(shards, tmp_path / "whole", **given))
    run(fit_arguments(shards, tmp_path / "two", **{**given, "trainer__max_steps": 40}))
    capsys.readouterr()
    run([*fit_arguments(shards, tmp_path / "two", **given), "--ckpt_path=last"])
    assert weights(tmp_path / "two" / "model") == weights(tmp_path / "whole" / "model")
    assert weights(tmp_path / "two" / "best") == weights(tmp_path / "whole" / "best")


@pytest.mark.slow
def test_a_run_whose_held_out_loss_falls_bundles_its_last_weights(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(fit_arguments(shards, tmp_path, **WATCHED, trainer__max_steps=4, trainer__val_check_interval=2))
    said = capsys.readouterr().out
    assert "warning" not in said and not (tmp_path / "last").exists()
    assert weights(tmp_path / "model") == weights(tmp_path / "best")


@pytest.mark.slow
def test_best_weights_that_cannot_be_written_are_named_and_training_continues(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "best.partial").write_text("in the way")
    run(fit_arguments(shards, tmp_path, **{**MEMORISES, "trainer__max_steps": 40}))
    said = capsys.readouterr().out
    assert "warning: the best weights are not kept, and training continues" in said and "weights are taken" not in said
    assert (tmp_path / "model" / "model.safetensors").is_file() and not (tmp_path / "best").exists()


def test_a_loss_turns_past_the_tolerance_and_not_before() -> None:
    loss = LowestLoss()
    assert loss.add(2.0, 10, 1.9) and not loss.turned(0.02)
    assert not loss.add(2.03, 20, 1.5) and not loss.turned(0.02)
    assert not loss.add(2.05, 30, 1.0) and loss.turned(0.02)
    assert loss.add(1.5, 40, 0.9) and not loss.turned(0.02) and (loss.lowest, loss.step) == (1.5, 40)
    losses = HeldOutLosses(losses={"loss": loss}, kept=40)
    assert HeldOutLosses.of_state(losses.state()) == losses


def test_nonsense_is_one_line(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        HeldOut(tolerance=-1)
    for option in ({"held_out__tolerance": -1}, {"bundle__weights": "first"}):
        with pytest.raises(SystemExit, match="2"):
            main(fit_arguments(shards, tmp_path, **option))
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_folder_of_another_kind_is_not_overwritten(
    name: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / name / "thesis.tex").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        main(fit_arguments(shards, tmp_path / "run"))
    assert f"{name} holds other things than an earlier result, thesis.tex first" in capsys.readouterr().err
    assert (tmp_path / "run" / name / "thesis.tex").read_text() == "mine"


@pytest.mark.ranks
def test_two_ranks_keep_and_take_the_best_weights_as_one_does(shards: Path, tmp_path: Path) -> None:
    """Ranks validate their shares, decide alike, and gather the weights together."""
    given: Options = {**MEMORISES, "trainer__precision": "64-true", "data__stream__rows": 2}
    alone: Options = {**given, "trainer__accumulate_grad_batches": 2, "trainer__val_check_interval": 20}
    run(fit_arguments(shards, tmp_path / "one", **alone))
    sharded: Options = {**given, "trainer__devices": 2, "trainer__strategy": "sharded"}
    process = start_training(fit_arguments(shards, tmp_path / "two", **sharded))
    output = finish(process, 240)
    assert process.returncode == 0, output
    for name in ("best", "last"):
        one, two = (load_file(tmp_path / root / name / "model.safetensors") for root in ("one", "two"))
        assert one.keys() == two.keys()
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=1e-6, atol=1e-8)
