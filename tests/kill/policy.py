"""Kills reinforcement learning at random steps and resumes it: every loss must be the unbroken run's, digit by digit.

python -m tests.kill.policy --kills 5
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.kill.options import kill_options
from tests.kill.training import kill_and_compare
from tests.oracles.tiny_rl import rl_arguments

STEPS, CHECKPOINT_EVERY = 24, 2
LOSS_FILE = "tests.oracles.tiny_training.LossFile"


def arguments(folder: Path, ranks: int, root: Path) -> list[str]:
    """Of a run with `ranks` processes, two mini-batches a rollout."""
    root.mkdir(parents=True)
    return rl_arguments(
        folder / "data",
        root,
        trainer__max_steps=STEPS,
        trainer__devices=ranks,
        trainer__strategy="ddp" if ranks > 1 else "auto",
        trainer__callbacks=f"[{{class_path: {LOSS_FILE}, init_args: {{path: {root / 'losses.txt'}}}}}]",
        checkpoint__every_n_train_steps=CHECKPOINT_EVERY,
    )


def main() -> None:
    options = kill_options(__doc__, kills=5)
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, 2):
            root = Path(folder) / str(ranks)
            again = kill_and_compare(partial(arguments, root, ranks), root, options.kills, options.seed, STEPS, every=2)
            found = {"ranks": ranks, "kills": options.kills, "rollouts_taken_again": again}
            sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
