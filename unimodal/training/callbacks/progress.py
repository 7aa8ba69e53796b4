"""A progress bar over optimizer steps: loss, tokens or images a second, time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unimodal.terminal import open_console, say

SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_FIGURES = 20.0, 0.25
"""Figures lie on the device, and reading them waits for it."""

SHOWN = ("loss", "loss_text", "loss_image", "psnr", "reward")


class StepProgress(ProgressBar):
    """Rich progress on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._console = open_console()
        self._progress: Progress | None = None
        self._task: Any = None
        self._units, self._first_step = 0, 0
        self._since = self._last_line = 0.0

    def disable(self) -> None:
        """Silence."""
        self._enabled = False

    def enable(self) -> None:
        """Speak again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._first_step = optimizer_steps(pl_module)
        self._since = self._last_line = time.perf_counter()
        if not self._enabled or not trainer.is_global_zero or not self._console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("fit", style="bold"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._progress.start()
        self._task = self._progress.add_task("fit", total=trainer.max_steps, completed=trainer.global_step, shown="")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del outputs, batch_idx
        self._units += _units(batch) * trainer.world_size
        step = optimizer_steps(pl_module)
        if not self._enabled or not trainer.is_global_zero:
            return
        if self._progress is not None:
            self._progress.update(self._task, completed=step)
            if time.perf_counter() - self._last_line > SECONDS_BETWEEN_FIGURES:
                self._last_line = time.perf_counter()
                self._progress.update(self._task, shown=self._shown(trainer.callback_metrics, batch))
        elif time.perf_counter() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.perf_counter()
            left = self._time_left(step, trainer.max_steps)
            shown = self._shown(trainer.callback_metrics, batch)
            say(f"step {step}/{trainer.max_steps}  {shown}  {left}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        del trainer, pl_module
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        del exception
        self.on_train_end(trainer, pl_module)

    def _shown(self, metrics: Mapping[str, Any], batch: Any) -> str:
        values = [f"{name} {float(metrics[f'train/{name}']):.3f}" for name in SHOWN if f"train/{name}" in metrics]
        speed = self._units / max(time.perf_counter() - self._since, 1e-9)
        unit = getattr(batch, "unit", "tokens/s" if hasattr(batch, "num_tokens") else "images/s")
        return "  ".join([*values, f"{speed:,.0f} {unit}"])

    def _time_left(self, step: int, total: int) -> str:
        spent = time.perf_counter() - self._since
        return f"{max(total - step, 0) * spent / max(step - self._first_step, 1):.0f} s left"


def optimizer_steps(module: L.LightningModule) -> int:
    """Optimizer steps done; with several optimizers, those of the first."""
    schedulers: Any = module.lr_schedulers()
    first = schedulers[0] if isinstance(schedulers, list) else schedulers
    return first.last_epoch if first is not None else module.trainer.global_step


def _units(batch: Any) -> int:
    return batch.num_tokens if hasattr(batch, "num_tokens") else len(batch)
