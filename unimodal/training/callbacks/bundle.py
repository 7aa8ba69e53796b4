"""Leaves a model bundle when training ends."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import lightning as L

from data_pipelines.spec import data_spec
from unimodal.bundle import Bundle
from unimodal.terminal import say
from unimodal.training.averaging import averaged_weights
from unimodal.training.callbacks.held_out import BestWeights, HeldOut
from unimodal.training.module import TransformerModule
from unimodal.training.parallel.gathering import whole_model

BundledWeights = Literal["auto", "best", "last"]
LAST = "last"
"""The folder of the last weights, in that of a run, where the best ones are its model."""


class BundleWriter(L.Callback):
    """Writes `out`, or `model` in the run's folder, with the tokenizers that lie beside the first shards.

    weights: the last ones, or the best, those with the lowest held-out loss; `auto` takes the best where the last ones
        are worse by more than `held_out.tolerance`, and leaves the last ones in the folder `last` of the run.
    """

    def __init__(self, out: Path | None = None, weights: BundledWeights = "auto") -> None:
        super().__init__()
        self.out, self.weights = out, weights

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, TransformerModule) or pl_module.model is None:
            return
        spec = data_spec(trainer)
        if spec.tokenizers is None:
            return
        with averaged_weights(pl_module.model, trainer.optimizers):
            model = whole_model(pl_module.model, keep=trainer.is_global_zero)
            if model is not None:
                self._write(trainer, Bundle.beside(model.eval(), pl_module.space, spec.tokenizers))

    def _write(self, trainer: L.Trainer, last: Bundle) -> None:
        root = Path(trainer.default_root_dir)
        out = Path(self.out) if self.out else root / "model"
        if (best := self._best(trainer)) is None:
            last.save(out)
        else:
            last.save(root / LAST)
            shutil.copytree(best.folder, out, dirs_exist_ok=True)
            say(
                f"best held-out loss: {best.loss.lowest:.3f}, at step {best.loss.step}: its weights are taken; "
                f"the last ones, with {best.loss.last:.3f}, are in {root / LAST}"
            )
        say(f"the model is in {out}; its curves and pictures: unimodal report {root}")

    def _best(self, trainer: L.Trainer) -> BestWeights | None:
        """The best weights, where they are wanted and were kept."""
        held_out = next((each for each in trainer.callbacks if isinstance(each, HeldOut)), None)  # pyright: ignore
        if held_out is None or self.weights == "last" or (self.weights == "auto" and not held_out.turned):
            return None
        return held_out.best(trainer)
