"""Answers of rollouts for people who look rather than read: pictures, words and what each was worth."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
from PIL import Image

from unimodal.training.callbacks.pictures import FOLDER, picture_grid, save_picture
from unimodal.training.rl.module import PolicyModule
from unimodal.training.rl.rollouts import Rollout

ROLLOUT_PICTURES = "rollout"
MAX_PROMPTS, MAX_ANSWERS = 8, 8


class RolloutSamples(L.Callback):
    """Of the first rollout, of every `every`-th and of the last: a grid of its pictures, a prompt a row, and a text
    file of prompts, answers and rewards, in the run's samples folder."""

    def __init__(self, every: int = 10) -> None:
        super().__init__()
        self.every = every
        self._written = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del outputs, batch, batch_idx
        if isinstance(pl_module, PolicyModule) and (pl_module.round == 1 or pl_module.round % self.every == 0):
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, PolicyModule):
            self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, module: PolicyModule) -> None:
        if module.last_rollout is None or self._written == module.round or not trainer.is_global_zero:
            return
        self._written = module.round
        if rows := list(islice(_rows_of_pictures(module.last_rollout), MAX_PROMPTS)):
            save_picture(trainer, ROLLOUT_PICTURES, picture_grid(rows))
        folder = Path(trainer.default_root_dir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join(_lines(module.last_rollout))
        (folder / f"{ROLLOUT_PICTURES}-{trainer.global_step:06d}.txt").write_text(text + "\n", encoding="utf-8")


def _rows_of_pictures(rollout: Rollout) -> Iterator[list[Image.Image]]:
    group = rollout.rewards.shape[1]
    for number in range(len(rollout.kinds)):
        answers = rollout.answers[number * group : (number + 1) * group]
        pictures = [each.pictures[0] for each in answers if each.pictures][:MAX_ANSWERS]
        if pictures:
            yield pictures


def _lines(rollout: Rollout) -> Iterator[str]:
    totals, group = rollout.totals, rollout.rewards.shape[1]
    for number in range(len(rollout.kinds)):
        yield f"{rollout.answers[number * group].prompt.words!r}"
        for member in range(min(group, MAX_ANSWERS)):
            answer = rollout.answers[number * group + member]
            parts = [part if isinstance(part, str) else "[picture]" for part in answer.parts]
            yield f"    {totals[number, member]:.3f}  {' '.join(parts)!r}"
