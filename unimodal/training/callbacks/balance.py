"""How the loss of a run is shared between modalities, which Chameleon balances when it is fine-tuned."""

from __future__ import annotations

from typing import Any

import lightning as L

from unimodal.terminal import say
from unimodal.training.module import TransformerModule
from unimodal.training.steps import LEARNT_TERMS

MODALITY_TITLES = {"text": "text", "image": "image codes", "flow": "latents"}
FEW = 0.05
"""Below this share a modality that has a loss is warned of: out of balance, a model learns to write, or to draw,
whatever it is asked (arXiv 2405.09818, section 3.1)."""


class ModalityBalance(L.Callback):
    """Says once, after `after` optimizer steps or at the end of a shorter run, which share of the weighted tokens each
    modality had, on all ranks."""

    def __init__(self, after: int = 50) -> None:
        super().__init__()
        self.after = after
        self._sums: dict[str, float] = {}
        self._steps = self._step = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del outputs, batch, batch_idx
        step = trainer.global_step
        if self._steps >= self.after or step == self._step or not isinstance(pl_module, TransformerModule):
            return
        self._step, self._steps = step, self._steps + 1
        for name in LEARNT_TERMS:
            if (share := trainer.callback_metrics.get(f"train/share_{name}")) is not None:
                self._sums[name] = self._sums.get(name, 0.0) + float(share)
        if self._steps == self.after:
            self._say(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        del pl_module
        if 0 < self._steps < self.after:
            self._say(trainer)

    def _say(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero or not self._sums:
            return
        shares = {name: total / self._steps for name, total in self._sums.items()}
        listed = ", ".join(f"{MODALITY_TITLES[name]} {share:.0%}" for name, share in shares.items())
        say(f"modalities share the loss: {listed} (of the weight of {self._steps} steps)")
        for title, share in ((MODALITY_TITLES[name], share) for name, share in shares.items()):
            if 0 < share < FEW:
                say(
                    f"warning: {title} have {share:.1%} of the loss: change data.mixture, templates.image_first or "
                    "templates.drawn_image_weight where the model is to learn them"
                )
