"""Numbers that are not finite: the step is skipped by all ranks, counted and kept; three in a row end the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import ADAMW, Options, finish, fit_arguments, logged, start_training
from unimodal.cli import main as command
from unimodal.training.cli import main

SECONDS = 120
"""A run that hangs is killed."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards")


def poisoned(
    shards: Path, root: Path, place: str, first: int, last: int, rank: int = 0, options: Options | None = None
) -> list[str]:
    settings: Options = {"trainer__max_steps": 6, "checkpoint__every_n_train_steps": 1, **(options or {})}
    arguments = [*fit_arguments(shards, root, **settings), "--trainer.callbacks+=tests.oracles.poison.Poison"]
    values = {"place": place, "first": first, "last": last, "rank": rank}
    return [*arguments, *(f"--trainer.callbacks.{name}={value}" for name, value in values.items())]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["data", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(shards: Path, tmp_path: Path, place: str) -> None:
    """Weights and optimizer stay: the loss of the next batch is that of a run that never stepped on it."""
    main(poisoned(shards, tmp_path / "run", place, 2, 3, options=ADAMW))
    assert list(logged(tmp_path / "run", "train/skipped_steps").values()) == ["0.0", "0.0", "1.0", "2.0", "2.0", "2.0"]
    losses = [float(loss) for loss in logged(tmp_path / "run", "train/loss").values()]
    assert all(0 < losses[step] < 10 for step in (0, 1, 4, 5))
    saved = [torch.load(path, weights_only=True) for path in sorted((tmp_path / "run").glob("checkpoints/*.ckpt"))]
    assert saved and all(torch.isfinite(t).all() for each in saved for t in each["state_dict"].values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "strategy"), [pytest.param("data", "ddp", marks=pytest.mark.ranks), ("gradient", "sharded")]
)
def test_ranks_skip_together_and_end_together(shards: Path, tmp_path: Path, place: str, strategy: str) -> None:
    two: Options = {"trainer__devices": 2, "trainer__strategy": strategy}
    process = start_training(poisoned(shards, tmp_path / "one", place, 2, 2, 1, two))
    output = " ".join(finish(process, SECONDS).split())
    assert process.returncode == 0 and output.count("the step is skipped, 1 so far") == 1, output
    assert list(logged(tmp_path / "one", "train/skipped_steps").values())[1:3] == ["0.0", "1.0"]
    assert (tmp_path / "one" / "skipped" / "step-000002-rank-1" / "batch.pt").is_file()
    process = start_training(poisoned(shards, tmp_path / "three", place, 2, 9, 1, two))
    output = " ".join(finish(process, SECONDS).split())
    assert process.returncode == 3, output
    assert "3 steps in a row" in output and "the last good checkpoint is" in output and "last.ckpt" in output
    assert not (tmp_path / "three" / "model").exists()


@pytest.mark.slow
def test_weights_that_are_not_finite_end_the_run_and_replay_names_where(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(poisoned(shards, tmp_path, "weight", 3, 3))
    assert ended.value.code == 3
    output = " ".join(capsys.readouterr().out.split())
    assert "is not written: the weights or the last gradients are not finite" in output
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3 and all(torch.isfinite(t).all() for t in saved["state_dict"].values())
    [first, *_] = sorted((tmp_path / "skipped").iterdir())
    assert command(["replay", str(first)]) == 1
    assert "trunk.blocks.1.feed_forward_norm.weight is not finite" in " ".join(capsys.readouterr().out.split())
    assert command(["replay", str(tmp_path)]) == 2
    assert "holds no batch of a skipped step" in capsys.readouterr().err


@pytest.mark.slow
def test_replay_names_data_and_the_first_module(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(poisoned(shards, tmp_path, "data", 1, 1))
    [folder] = (tmp_path / "skipped").iterdir()
    assert command(["replay", str(folder)]) == 1
    assert "the batch's loss_weights are not finite: the fault is in the data" in capsys.readouterr().out
    weights = load_file(folder / "model.safetensors")
    for name in ("gate_proj", "up_proj"):
        weights[f"trunk.blocks.1.feed_forward.{name}.weight"].mul_(1e21)
    save_file(weights, folder / "model.safetensors")
    batch = torch.load(folder / "batch.pt", weights_only=True)
    batch["loss_weights"] = torch.ones_like(batch["loss_weights"])
    torch.save(batch, folder / "batch.pt")
    assert command(["replay", str(folder)]) == 1
    line = " ".join(capsys.readouterr().out.split())
    assert line.startswith("trunk.blocks.1.feed_forward") and "of inputs that are" in line


@pytest.mark.slow
def test_a_refused_checkpoint_does_not_take_the_last_good_one_away(shards: Path, tmp_path: Path) -> None:
    """One is kept, each in the place of the one before; the weights of the later ones are not finite."""
    one: Options = {"checkpoint__save_top_k": 1, "checkpoint__save_last": "false"}
    with pytest.raises(SystemExit) as ended:
        main(poisoned(shards, tmp_path, "weight", 3, 3, options=one))
    assert ended.value.code == 3
    [kept] = (tmp_path / "checkpoints").glob("*.ckpt")
    saved = torch.load(kept, weights_only=True)
    assert saved["global_step"] == 3 and all(torch.isfinite(t).all() for t in saved["state_dict"].values())
