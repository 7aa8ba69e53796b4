"""Training some rows of embedding and head: the gradients of all others are set to 0, so that they stay as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from unimodal.model.model import UnifiedModel
from unimodal.model.sharded import local_parts, rows_here
from unimodal.training.optimizers.build import AdamWConfig, MuonConfig, OptimizerConfig
from unimodal.training.start import StartConfig


def tables_of_ids(model: UnifiedModel) -> list[Tensor]:
    """Embedding and head, once where they are one."""
    tables = [model.trunk.embedding.weight, model.token_head.weight]
    return tables[:1] if tables[0] is tables[1] else tables


def check_rows(start: StartConfig, optimizer: OptimizerConfig) -> None:
    """Raise ValueError where rows that are not trained would shrink all the same."""
    tables = optimizer.adamw or AdamWConfig() if isinstance(optimizer, MuonConfig) else optimizer
    if start.trainable_rows != "all" and isinstance(tables, AdamWConfig) and tables.weight_decay:
        raise ValueError(
            "start.trainable_rows: a weight_decay of embedding and head would shrink other rows; set it to 0"
        )


@torch.no_grad()
def keep_gradients_from(model: UnifiedModel, first_row: int) -> None:
    """Set the gradients of earlier rows to 0, wherever they lie: AdamW without decay then leaves them as they are."""
    for table in tables_of_ids(model):
        gradient: Tensor | None = table.grad
        if gradient is not None:
            start, end = rows_here(gradient)
            local_parts([gradient])[0][: max(0, min(first_row, end) - start)].zero_()
