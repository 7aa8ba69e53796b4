"""Leaves a model bundle when training ends."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import lightning as L

from data_pipelines.spec import data_spec
from unimodal.bundle import Bundle
from unimodal.terminal import say
from unimodal.training.callbacks.held_out import TOTAL, HeldOut
from unimodal.training.module import TransformerModule
from unimodal.training.parallel.gathering import whole_model

BundledWeights = Literal["auto", "best", "last"]


class BundleWriter(L.Callback):
    """Writes `out`, or `model` in the run's folder, with the tokenizers that lie beside the first shards.

    weights: the last ones, or the best, those with the lowest held-out loss; `auto` takes the best where the last ones
        are worse by more than `held_out.tolerance`, and leaves the last ones in `OUT_last`.
    """

    def __init__(self, out: Path | None = None, weights: BundledWeights = "auto") -> None:
        super().__init__()
        self.out, self.weights = out, weights

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, TransformerModule) or pl_module.model is None:
            return
        spec = data_spec(trainer)
        model = None if spec.tokenizers is None else whole_model(pl_module.model, keep=trainer.is_global_zero)
        if model is None or spec.tokenizers is None:
            return
        out = Path(self.out) if self.out else Path(trainer.default_root_dir) / "model"
        Bundle.beside(model.eval(), pl_module.space, spec.tokenizers).save(out)
        self._take_best(trainer, out)
        say(f"the model is in {out}; its curves and pictures: unimodal report {trainer.default_root_dir}")

    def _take_best(self, trainer: L.Trainer, out: Path) -> None:
        """The best weights in the place of the last ones, where they are wanted and were kept."""
        held_out = next((each for each in trainer.callbacks if isinstance(each, HeldOut)), None)  # pyright: ignore
        best = None if held_out is None else held_out.best_bundle(trainer)
        wanted = self.weights == "best" or (self.weights == "auto" and held_out is not None and held_out.turned)
        if held_out is None or best is None or not wanted:
            return
        last = out.with_name(f"{out.name}_last")
        shutil.rmtree(last, ignore_errors=True)
        out.rename(last)
        shutil.copytree(best, out)
        found = held_out.found.losses[TOTAL]
        say(
            f"best held-out loss: {found.lowest:.3f}, at step {found.step}: its weights are taken; the last ones, with "
            f"{found.last:.3f}, are in {last}"
        )
