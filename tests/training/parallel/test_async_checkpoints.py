"""Checkpoints that are written while training continues: whole or not at all, one at a time, never lost in silence."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import Options, finish, fit_arguments, kill, losses, start_training, wait_for
from unimodal.training.cli import main
from unimodal.training.parallel import writer as writer_module
from unimodal.training.parallel.checkpoint import REST_FILE, _SafeReader, load_tensors
from unimodal.training.parallel.writer import CheckpointWriter

SHARDED: Options = {"trainer__devices": 2, "trainer__strategy": "sharded", "trainer__max_steps": 8}
KEPT: Options = {
    "checkpoint__every_n_train_steps": 2,
    "checkpoint__save_top_k": 2,
    "checkpoint__monitor": "step",
    "checkpoint__mode": "max",
}
ASYNC: Options = {"model__parallel__async_checkpoints": "true"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards")


def arguments(shards: Path, root: Path, options: Options, disk: str = "", first: int = 1) -> list[str]:
    given = [*fit_arguments(shards, root, **options), "--trainer.callbacks+=tests.oracles.tiny_training.LossFile"]
    given.append(f"--trainer.callbacks.path={root / 'losses'}")
    if disk:
        values = {"disk": disk, "first": first, "flag": root / "flag"}
        given.append("--trainer.callbacks+=tests.oracles.slow_writing.Writing")
        given += [f"--trainer.callbacks.{name}={value}" for name, value in values.items()]
    root.mkdir(parents=True, exist_ok=True)
    return given


def train(given: list[str]) -> None:
    process = start_training(given)
    output = finish(process, 300)
    assert process.returncode == 0, output


def tensors(path: Path) -> dict[str, Tensor]:
    stored = _SafeReader(path).read_metadata().state_dict_metadata
    found = {
        name: torch.empty(each.size, dtype=each.properties.dtype)
        for name, each in stored.items()
        if isinstance(each, TensorStorageMetadata)
    }
    load_tensors(path, found)
    return found


def steps(root: Path) -> list[int]:
    return [step for step, _ in losses(root / "losses")]


@pytest.fixture(scope="module")
def at_once(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks that waits for its checkpoints."""
    root = tmp_path_factory.mktemp("runs") / "at-once"
    train(arguments(shards, root, {**SHARDED, **KEPT}))
    return root


@pytest.mark.slow
@pytest.mark.ranks
def test_a_checkpoint_of_a_slow_disk_is_that_of_a_run_that_waits(shards: Path, tmp_path: Path, at_once: Path) -> None:
    """To the bit, though the weights change while it is written; and as many are kept."""
    train(arguments(shards, tmp_path, {**SHARDED, **KEPT, **ASYNC}, "slow"))
    kept = sorted(path.name for path in (at_once / "checkpoints").iterdir())
    assert len(kept) == 3 and sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == kept
    for name in kept:
        expected, found = (tensors(root / "checkpoints" / name) for root in (at_once, tmp_path))
        assert found.keys() == expected.keys() and len(found) > 20
        assert all(torch.equal(found[each], expected[each]) for each in expected)
        rests = [torch.load(root / "checkpoints" / name / REST_FILE, weights_only=True) for root in (at_once, tmp_path)]
        assert rests[0]["global_step"] == rests[1]["global_step"]
        assert rests[0]["optimizer_states"] == rests[1]["optimizer_states"]


@pytest.mark.slow
@pytest.mark.ranks
def test_training_continues_while_a_checkpoint_is_written_and_a_kill_leaves_the_one_before(
    shards: Path, tmp_path: Path, at_once: Path
) -> None:
    """The second never ends: steps follow until the third begins, and the killed run resumes from the first."""
    last: Options = {**SHARDED, **ASYNC, "checkpoint__every_n_train_steps": 2}
    process = start_training(arguments(shards, tmp_path, last, "still", first=2))
    wait_for(process, tmp_path / "flag", 240)
    deadline = time.monotonic() + 60
    while steps(tmp_path)[-1] < 6 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    kill(process)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "checkpoints" / "last.ckpt.partial").is_dir()
    (tmp_path / "losses").unlink()
    train([*arguments(shards, tmp_path, last), "--ckpt_path=last"])
    assert losses(tmp_path / "losses") == losses(at_once / "losses")[2:]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.slow
@pytest.mark.ranks
def test_a_disk_of_one_rank_that_is_full_ends_the_run_with_one_line_and_keeps_the_checkpoint_before(
    shards: Path, tmp_path: Path
) -> None:
    one: Options = {"checkpoint__save_top_k": 1, "checkpoint__save_last": "false", "checkpoint__every_n_train_steps": 2}
    process = start_training(arguments(shards, tmp_path, {**SHARDED, **ASYNC, **one}, "full", first=2))
    output = finish(process, 240)
    assert process.returncode == 2 and "Traceback" not in output, output
    assert "step=4.ckpt could not be written: No space left on device" in " ".join(output.split())
    found = [path for path in (tmp_path / "checkpoints").glob("*.ckpt") if (path / REST_FILE).is_file()]
    assert [path.name for path in found] == ["epoch=0-step=2.ckpt"]


@pytest.mark.slow
def test_sigterm_ends_a_run_once_its_checkpoint_is_whole(shards: Path, tmp_path: Path) -> None:
    options: Options = {**SHARDED, **ASYNC, "trainer__devices": 1, "trainer__max_steps": 1000}
    options |= {"checkpoint__every_n_train_steps": 2, "model__schedule__decay": "constant"}
    process = start_training(arguments(shards, tmp_path, options, "slow"))
    deadline = time.monotonic() + 120
    while len(steps(tmp_path)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    output = finish(process, 120)
    assert process.returncode == 143, output
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    rest = torch.load(tmp_path / "checkpoints" / "last.ckpt" / REST_FILE, weights_only=True)
    assert rest["global_step"] == steps(tmp_path)[-1]


def test_what_is_to_be_removed_stays_until_the_next_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a writer was given may change: it writes what was there."""
    fails, written = [False], dict[str, Any]()

    def saved(path: Path, tensors: Any, rest: bytes, group: Any = None) -> None:
        del rest, group
        time.sleep(0.3)
        if fails[0]:
            raise RuntimeError("the disk is gone")
        path.mkdir()
        written[path.name] = tensors["weight"].tolist()

    monkeypatch.setattr(writer_module, "save_sharded", saved)
    paths = [tmp_path / f"{number}.ckpt" for number in range(3)]
    writer, weight = CheckpointWriter(), torch.zeros(2)
    for number in range(2):
        began = time.monotonic()
        writer.save(paths[number], {"weight": weight}, {}, in_background=True)
        assert number or time.monotonic() - began < 0.25
        weight += 1
    writer.remove(paths[0])
    assert paths[0].exists() and not paths[1].exists()
    writer.wait()
    assert paths[1].exists() and not paths[0].exists()
    assert written == {"0.ckpt": [0, 0], "1.ckpt": [1, 1]}
    fails[0] = True
    writer.save(paths[2], {"weight": weight}, {}, in_background=True)
    writer.remove(paths[1])
    with pytest.raises(OSError, match=r"2\.ckpt could not be written: the disk is gone"):
        writer.wait()
    writer.wait()
    assert paths[1].exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "parallel.async_checkpoints is for trainer.strategy sharded"),
        ({"trainer__strategy": "sharded", "checkpoint__save_last": "link"}, "set it to true, not to link"),
    ],
)
def test_what_cannot_be_written_in_the_background_is_refused(
    shards: Path, tmp_path: Path, options: Options, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(fit_arguments(shards, tmp_path / "run", **{**ASYNC, **options}))
    assert ended.value.code == 2 and reason in capsys.readouterr().err
