"""float16 with a loss scale on a CPU, where Lightning takes bfloat16 instead: the same plugin that a GPU gets."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.plugins import MixedPrecision


class HalfOnCPU(L.Callback):
    """`trainer.precision: 16-mixed`, from a scale of `scale` that is doubled after `interval` sound steps."""

    def __init__(self, scale: float = 1024.0, interval: int = 2000) -> None:
        super().__init__()
        self.scale, self.interval = scale, interval

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        del pl_module, stage
        scaler = torch.amp.GradScaler("cpu", init_scale=self.scale, growth_interval=self.interval)
        trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)
