"""A run that is resumed with other settings: they are said, and they hold. An optimizer's state has its old ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from torch.optim.lr_scheduler import LambdaLR

GroupSettings = list[dict[str, Any]]
"""Of each group of an optimizer: rates, decay, names."""

UNSAID = ("ckpt_path", "config", "trainer.max_steps", "trainer.callbacks", "trainer.logger")
"""What differs between the parts of most runs."""


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
        """A state may have been loaded."""
        del pl_module
        for optimizer, settings in zip(trainer.optimizers, self._settings, strict=True):
            for group, wanted in zip(optimizer.param_groups, settings, strict=True):
                group.update(wanted)
        for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
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


def changed_settings(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """`name: was 1, is 2` for each value that differs between two configs of plain values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*before, *now)):
            yield from changed_settings(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    elif before != now and not name.startswith(UNSAID):
        yield f"{name}: was {before}, is {now}"


def config_before(folder: Path) -> Any:
    """That of the last run in the folder of a run, None where there was none."""
    found = sorted(folder.glob("logs/version_*/config.yaml"), key=_version)
    return yaml.safe_load(found[-1].read_text(encoding="utf-8")) if found else None


def _version(path: Path) -> int:
    number = path.parent.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1


def changes_line(changes: Sequence[str]) -> str:
    """One line for people."""
    return "resumed with other settings: " + "; ".join(changes)
