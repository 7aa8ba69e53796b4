"""What is trained, printed before the first step: which parts, by which group of the optimizer, at which rate."""

from __future__ import annotations

import lightning as L
from rich.table import Table
from torch import nn

from unimodal.terminal import open_console
from unimodal.training.module import TransformerModule

FROZEN = "not trained"


class ParameterTable(L.Callback):
    """Parameters by part of the model and group of the optimizer."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or not isinstance(pl_module, TransformerModule) or pl_module.model is None:
            return
        table = Table("part", "group", "learning rate", "parameters")
        named = {str(group.get("name", n)): group for n, group in enumerate(trainer.optimizers[0].param_groups)}
        rates = {name: group.get("initial_lr", group["lr"]) for name, group in named.items()}
        groups = {id(parameter): name for name, group in named.items() for parameter in group["params"]}
        for (part, group), count in parameter_counts(pl_module.optimized(), groups).items():
            table.add_row(part, group, f"{rates[group]:g}" if group in rates else "", f"{count:,}")
        if pl_module.start.trainable_rows != "all":
            table.caption = "of embedding and head, the rows of image codes alone are trained"
        open_console().print(table)


def parameter_counts(model: nn.Module, groups: dict[int, str]) -> dict[tuple[str, str], int]:
    """(part, group) -> numbers; `groups` are by id of a parameter, and the first two words of its name are its part."""
    counts: dict[tuple[str, str], int] = {}
    for name, parameter in model.named_parameters():
        key = (".".join(name.split(".")[:2]), groups.get(id(parameter), FROZEN) if parameter.requires_grad else FROZEN)
        counts[key] = counts.get(key, 0) + parameter.numel()
    return counts
