"""A run that was killed goes on as if nothing had happened, and a file that is no checkpoint is refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from tests.kill.training import kill_and_resume
from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import finish, fit_arguments, logged, losses, start_training
from unimodal.training.checkpointing import AtomicCheckpointIO
from unimodal.training.cli import main, run

LAST_SAVED, KILLED_AFTER, STEPS = 4, 6, 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards")


def train_to_the_end(arguments: list[str]) -> None:
    process = start_training(arguments)
    output = finish(process)
    assert process.returncode == 0, output


def train_and_kill(arguments: list[str], flag: Path) -> None:
    """SIGKILL once the run stands still at `KILLED_AFTER`, two steps past its last checkpoint."""
    standstill = "tests.oracles.tiny_training.Standstill"
    extra = [f"--trainer.callbacks+={standstill}", f"--trainer.callbacks.step={KILLED_AFTER}"]
    process = start_training([*arguments, *extra, f"--trainer.callbacks.flag={flag}"])
    deadline = time.monotonic() + 600
    while not flag.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    still_running = process.poll() is None
    process.kill()
    output = finish(process)
    assert flag.exists() and still_running, output


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_does_not_end_as_if_it_were_done(shards: Path, tmp_path: Path) -> None:
    file = tmp_path / "losses"
    arguments = fit_arguments(shards, tmp_path / "run", trainer__max_steps=100_000)
    callback = "--trainer.callbacks+=tests.oracles.tiny_training.LossFile"
    process = start_training([*arguments, callback, f"--trainer.callbacks.path={file}"])
    deadline = time.monotonic() + 600
    while len(losses(file)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    output = finish(process)
    assert process.returncode == 143 and "train.py: stopped by SIGTERM; --ckpt_path last" in output, output


@pytest.mark.slow
def test_a_run_that_was_killed_and_resumed_has_the_losses_of_an_unbroken_one(shards: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "model__trunk__dropout": 0.1,
        "trainer__accumulate_grad_batches": 2,
        "trainer__limit_val_batches": 1,
        "trainer__val_check_interval": 8,
        "trainer__check_val_every_n_epoch": "null",
        "data__validation_share": 0.2,
    }
    train_to_the_end(fit_arguments(shards, tmp_path / "unbroken", **options))
    broken = fit_arguments(shards, tmp_path / "broken", **options)
    train_and_kill(broken, tmp_path / "stands")
    assert (tmp_path / "broken" / "checkpoints" / "last.ckpt").is_file()
    train_to_the_end([*broken, "--ckpt_path=last"])
    for metric in ("train/loss", "train/grad_norm"):
        expected = logged(tmp_path / "unbroken", metric)
        found = logged(tmp_path / "broken", metric, version=1)
        assert sorted(expected) == list(range(STEPS)) and len(set(expected.values())) == STEPS
        assert found == {step: expected[step] for step in range(LAST_SAVED, STEPS)}


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    root = tmp_path_factory.mktemp("trained")
    run(fit_arguments(shards, root, trainer__max_steps=4))
    return root


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line a run that is refused leaves on stderr."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py:")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.slow
def test_a_checkpoint_that_was_cut_off_is_refused_in_one_line(
    shards: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (trained / "checkpoints" / "last.ckpt").read_bytes()
    for name, content in (("half.ckpt", whole[: len(whole) // 2]), ("empty.ckpt", b""), ("noise.ckpt", b"x" * 500)):
        (tmp_path / name).write_bytes(content)
        arguments = [*fit_arguments(shards, tmp_path / "run"), f"--ckpt_path={tmp_path / name}"]
        assert name in refusal(arguments, capsys)


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.touched,)


@pytest.mark.slow
def test_a_checkpoint_with_a_pickled_object_is_refused_and_nothing_in_it_runs(
    shards: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save({**checkpoint, "trap": Trap(tmp_path / "sprung")}, tmp_path / "trap.ckpt")
    arguments = [*fit_arguments(shards, tmp_path / "run"), f"--ckpt_path={tmp_path / 'trap.ckpt'}"]
    assert "more than plain tensors and values" in refusal(arguments, capsys)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.slow
def test_a_checkpoint_of_another_token_space_is_refused(
    shards: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["token_space"]["image_hash"] = "of another tokenizer"
    torch.save(checkpoint, tmp_path / "other.ckpt")
    arguments = [*fit_arguments(shards, tmp_path / "run"), f"--ckpt_path={tmp_path / 'other.ckpt'}"]
    assert "different token spaces: image_hash" in refusal(arguments, capsys)


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    plugin.save_checkpoint({"step": torch.tensor(1)}, path)

    def die_halfway(self: TorchCheckpointIO, checkpoint: Any, file: str, *options: Any) -> None:
        del self, checkpoint, options
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", die_halfway)
    with pytest.raises(KeyboardInterrupt):
        plugin.save_checkpoint({"step": torch.tensor(2)}, path)
    assert plugin.load_checkpoint(path) == {"step": torch.tensor(1)}


def test_a_finished_run_leaves_a_bundle_that_opens_and_no_partial_file(trained: Path) -> None:
    import unimodal

    model = unimodal.load(trained / "model")
    assert model.model.config.trunk.dim == 16
    assert [path.name for path in trained.rglob("*.partial")] == []


@pytest.mark.ranks
def test_two_ranks_with_two_workers_each_are_killed_at_a_random_step_and_go_on_with_the_same_losses(
    tmp_path: Path,
) -> None:
    assert kill_and_resume(tmp_path / "run", kills=2, seed=3, workers=2, ranks=2, steps=14) >= 1
