"""The config's settings of an optimizer hold in a resumed run: a checkpoint has those of the run before."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch.optim.lr_scheduler import LambdaLR

GroupSettings = list[dict[str, Any]]
"""Of each group of an optimizer: rates, decay, names."""
RATES = ("lr", "initial_lr")
"""What a scheduler changes."""


class HoldSettings(L.Callback):
    """Puts rates, decay and betas of the config back over those of a checkpoint, before the first step.

    A run whose settings are the same computes the same to the bit.
    """

    def __init__(self) -> None:
        super().__init__()
        self._settings: list[GroupSettings] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Optimizers are made, and no state is loaded yet."""
        del pl_module
        self._settings = [settings_of(optimizer) for optimizer in trainer.optimizers]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A state may have been loaded. A scheduler of another kind than ours keeps the rates that it has come to."""
        del pl_module
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        others = {id(each.optimizer) for each in schedulers if not isinstance(each, LambdaLR)}
        for optimizer, settings in zip(trainer.optimizers, self._settings, strict=True):
            kept = RATES if id(optimizer) in others else ()
            for group, wanted in zip(optimizer.param_groups, settings, strict=True):
                group.update({name: value for name, value in wanted.items() if name not in kept})
        for scheduler in schedulers:
            if isinstance(scheduler, LambdaLR):
                _hold_rates(scheduler)


def settings_of(optimizer: torch.optim.Optimizer) -> GroupSettings:
    """All but the parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def _hold_rates(scheduler: LambdaLR) -> None:
    groups = scheduler.optimizer.param_groups
    scheduler.base_lrs = [group["initial_lr"] for group in groups]
    for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * factor(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in groups]
