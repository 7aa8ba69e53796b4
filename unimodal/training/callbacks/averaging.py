"""The section `ema` of a config: what is validated, drawn as samples and bundled is an average of the weights."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning as L

from unimodal.training.averaging import AVERAGED, average_decay, averaged_weights, begin_average, update_average
from unimodal.training.module import TransformerModule


class ExponentialAverage(L.Callback):
    """Keeps an exponential moving average of the weights, as BAGEL does (arXiv 2505.14683, table 3); 0 keeps none.

    Validation, samples and bundles take the average, training continues from the weights. Parameters that are not
    trained are no part of it, nor are routers' biases, which follow their counts.
    """

    def __init__(self, decay: float = 0.0) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"ema.decay lies between 0 and 1, got {decay}")
        self.decay = decay
        self._validated = ExitStack()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before a checkpoint is loaded, whose averages then take the place of these."""
        if not self.decay or not isinstance(pl_module, TransformerModule):
            return

        def update(optimizer: Any, *_: Any) -> None:
            begin_average(optimizer)
            update_average(optimizer, average_decay(self.decay, trainer.global_step))

        for optimizer in trainer.optimizers:
            begin_average(optimizer)
            optimizer.register_step_post_hook(update)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Which number of an optimizer's state is whose, so that a bundle of the checkpoint has the averages."""
        if self.decay and isinstance(pl_module, TransformerModule):
            names = {id(each): name for name, each in pl_module.named_parameters() if each.requires_grad}
            groups = trainer.optimizers[0].param_groups
            checkpoint[AVERAGED] = [names.get(id(each), "") for group in groups for each in group["params"]]

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.decay and isinstance(pl_module, TransformerModule) and pl_module.model is not None:
            self._validated.enter_context(averaged_weights(pl_module.model, trainer.optimizers))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before anything is kept of the validation."""
        del trainer, pl_module
        self._validated.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Weights come back before anybody writes them."""
        del trainer, pl_module, exception
        self._validated.close()
