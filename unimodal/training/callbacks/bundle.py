"""Leaves a model bundle when training ends."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from data_pipelines.spec import data_spec
from unimodal.bundle import Bundle
from unimodal.terminal import say
from unimodal.training.module import TransformerModule
from unimodal.training.parallel.gathering import whole_model


class BundleWriter(L.Callback):
    """Writes `out`, or `model` in the run's folder, with the tokenizers that lie beside the first shards."""

    def __init__(self, out: Path | None = None) -> None:
        super().__init__()
        self.out = out

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, TransformerModule) or pl_module.model is None:
            return
        spec = data_spec(trainer)
        model = None if spec.tokenizers is None else whole_model(pl_module.model, keep=trainer.is_global_zero)
        if model is None or spec.tokenizers is None:
            return
        out = Path(self.out) if self.out else Path(trainer.default_root_dir) / "model"
        Bundle.beside(model.eval(), pl_module.space, spec.tokenizers).save(out)
        say(f"the model is in {out}; its curves and pictures: unimodal report {trainer.default_root_dir}")
