"""Kills `train.py fit` at random steps and resumes it: every step's loss must be the unbroken run's, digit by digit.

python -m tests.kill.training --kills 10
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.kill.options import kill_options
from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import finish, fit_arguments, kill, losses, start_training

STEPS, CHECKPOINT_EVERY = 40, 3
SETTINGS = [(0, 1), (2, 1), (0, 2), (2, 2)]
"""(loader workers, ranks)."""


def kill_and_resume(folder: Path, kills: int, seed: int, workers: int, ranks: int, steps: int = STEPS) -> int:
    """As `kill_and_compare`, of pretraining."""
    folder.mkdir(parents=True)
    shards = tiny_shards(folder / "shards")
    return kill_and_compare(lambda root: _arguments(shards, root, workers, ranks, steps), folder, kills, seed, steps)


def kill_and_compare(
    arguments: Callable[[Path], list[str]], folder: Path, kills: int, seed: int, steps: int, every: int = 1
) -> int:
    """Kill a run `kills` times at random steps; the number of steps that were taken again after a kill.

    `arguments` of a run in a folder, with a LossFile `losses.txt` in it, a line every so many steps.

    Raises AssertionError where a loss differs from the unbroken run's.
    """
    rng = random.Random(seed)
    unbroken, broken = (arguments(folder / name) for name in ("unbroken", "broken"))
    _run_to_the_end(unbroken)
    expected = dict(losses(folder / "unbroken" / "losses.txt"))
    assert sorted(expected) == list(range(every, steps + 1, every)), "the unbroken run did not take every step"
    assert len(set(expected.values())) == len(expected), "losses that are all the same prove nothing"
    file = folder / "broken" / "losses.txt"
    for step in sorted(rng.sample(range(CHECKPOINT_EVERY + 1, steps), kills)):
        _kill_at(_resuming(broken, folder / "broken"), file, step)
    _run_to_the_end(_resuming(broken, folder / "broken"))
    found = losses(file)
    assert {step for step, _ in found} == set(expected)
    different = [(step, loss, expected[step]) for step, loss in found if loss != expected[step]]
    assert not different, f"these steps differ: {different[:3]}"
    return len(found) - len(expected)


def _arguments(shards: Path, root: Path, workers: int, ranks: int, steps: int) -> list[str]:
    root.mkdir()
    options: dict[str, Any] = {
        "model__trunk__dropout": 0.1,
        "trainer__max_steps": steps,
        "trainer__devices": ranks,
        "trainer__strategy": "ddp" if ranks > 1 else "auto",
        "data__num_workers": workers,
        "data__stream__length": 32,
        "data__stream__rows": 2,
        "checkpoint__every_n_train_steps": CHECKPOINT_EVERY,
    }
    callback = ["--trainer.callbacks=tests.oracles.tiny_training.LossFile"]
    return [*fit_arguments(shards, root, **options), *callback, f"--trainer.callbacks.path={root / 'losses.txt'}"]


def _resuming(arguments: list[str], root: Path) -> list[str]:
    return [*arguments, "--ckpt_path=last"] if (root / "checkpoints" / "last.ckpt").exists() else arguments


def _run_to_the_end(arguments: list[str]) -> None:
    process = start_training(arguments)
    output = finish(process, 900)
    assert process.returncode == 0, output


def _kill_at(arguments: list[str], file: Path, step: int) -> None:
    """SIGKILL as soon as the file tells of `step`, which may be a few steps later."""
    process = start_training(arguments)
    deadline = time.monotonic() + 900
    while max((taken for taken, _ in losses(file)), default=0) < step and process.poll() is None:
        assert time.monotonic() < deadline, f"step {step} never came"
        time.sleep(0.01)
    kill(process)


def main() -> None:
    options = kill_options(__doc__, kills=10)
    with tempfile.TemporaryDirectory() as folder:
        for workers, ranks in SETTINGS:
            root = Path(folder) / f"{workers}-{ranks}"
            again = kill_and_resume(root, options.kills, options.seed, workers, ranks)
            told = {"workers": workers, "ranks": ranks, "kills": options.kills, "steps_taken_again": again}
            sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
