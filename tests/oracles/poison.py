"""Callbacks that make numbers of training not finite, in data, loss or gradient, on one rank at chosen steps."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

Place = Literal["data", "gradient", "weight"]


class Poison(L.Callback):
    """NaN in the batch, or in a gradient as it is made, at steps `first` to `last`; `weight` stays in the weights."""

    def __init__(self, place: Place, first: int, last: int, rank: int = 0) -> None:
        super().__init__()
        self.place, self.first, self.last, self.rank = place, first, last, rank

    def _is_poisoned(self, trainer: L.Trainer) -> bool:
        return trainer.global_rank == self.rank and self.first <= trainer.global_step <= self.last

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        def poisoned(gradient: Tensor) -> Tensor:
            return gradient * float("nan") if self.place == "gradient" and self._is_poisoned(trainer) else gradient

        def watch(module: nn.Module, given: Any, features: Tensor) -> None:
            del module, given
            if features.requires_grad:
                features.register_hook(poisoned)

        norm: Any = pl_module.model.trunk.norm  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        norm.register_forward_hook(watch)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        del batch_idx
        if not self._is_poisoned(trainer):
            return
        if self.place == "data":
            batch.loss_weights.fill_(float("nan"))
            batch.facts.counted.weights.fill_(float("nan"))
        if self.place == "weight":
            with torch.no_grad():
                pl_module.model.trunk.blocks[1].feed_forward_norm.weight.fill_(float("nan"))  # pyright: ignore
