"""Callbacks that watch a training run: what it loses in every batch on every rank, and what enters the flow branch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor


class BatchLosses(L.Callback):
    """Appends the loss of each batch, every digit of it, to `path` with the number of the rank behind it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = str(path)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, batch, batch_idx
        with Path(f"{self.path}{trainer.global_rank}").open("a") as file:
            file.write(float(outputs["loss"]).hex() + "\n")


def batch_losses(path: Path, ranks: int = 1) -> list[str]:
    """What BatchLosses wrote: of the first batch of every rank, then of the second of every rank, ..."""
    of_ranks = [Path(f"{path}{rank}").read_text().split() for rank in range(ranks)]
    return [loss for round_of_ranks in zip(*of_ranks, strict=True) for loss in round_of_ranks]


class EnteringLatents(L.Callback):
    """Saves what the first layer of the flow branch is given, batch by batch, to `path` at the end."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.entered: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        del trainer
        [layer] = [module for name, module in pl_module.named_modules() if name.endswith("latent_in")]
        layer.register_forward_pre_hook(lambda layer, given: self.entered.append(given[0].detach().clone()))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        del trainer, pl_module
        torch.save(self.entered, self.path)


def watched(callback: type[L.Callback], path: Path) -> list[str]:
    """The arguments of `train.py fit` that add such a callback."""
    name = f"{callback.__module__}.{callback.__qualname__}"
    return [f"--trainer.callbacks+={name}", f"--trainer.callbacks.path={path}"]
