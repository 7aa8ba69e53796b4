"""SIGTERM, as schedulers of clusters send it: the run ends after the step, with a checkpoint of it."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from unimodal.training.module import TransformerModule


class CheckpointOnSigterm(L.Callback):
    """All ranks end after the same step, whichever of them got the signal: it travels with the sums of the step."""

    def __init__(self) -> None:
        super().__init__()
        self._before: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        del trainer
        if isinstance(pl_module, TransformerModule) and threading.current_thread() is threading.main_thread():

            def ask(number: int, frame: Any) -> None:
                del number, frame
                pl_module.skipped.stop_asked = True

            self._before = signal.signal(signal.SIGTERM, ask)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del outputs, batch, batch_idx
        if isinstance(pl_module, TransformerModule) and pl_module.skipped.stops:
            callback: Any = trainer.checkpoint_callback
            if callback is not None and callback.dirpath:
                trainer.save_checkpoint(Path(callback.dirpath) / "last.ckpt")
            raise SIGTERMException

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        del trainer, pl_module, stage
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
