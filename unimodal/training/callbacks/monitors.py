"""Monitors of a run: what grows before a loss diverges, logged and warned of. On every kind of model."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor

from data_pipelines.batch import PackedBatch
from unimodal.terminal import say
from unimodal.training.module import TransformerModule
from unimodal.training.monitors.alarms import History, Limits, warnings
from unimodal.training.monitors.documents import document_sums
from unimodal.training.monitors.gradients import modality_gradients
from unimodal.training.monitors.measuring import measure_sample
from unimodal.training.monitors.observed import Observer
from unimodal.training.monitors.predictions import CodeUse
from unimodal.training.monitors.weights import Updates, ratios
from unimodal.training.parallel.strategy import ShardedStrategy

MONITOR_PREFIX = "monitor/"
OF_STEP = ("loss", "grad_norm")
"""What a step logs itself."""


class Monitors(L.Callback):
    """Every `every` optimizer steps a pass over the first `rows` rows of each rank's batch, whose figures are logged as
    `monitor/...` and compared with `limits`; 0 turns them off.

    A run of reinforcement learning has its own alarms and is not observed. The gradients of modalities need passes of
    their own, backward too: they come every `gradients_every` steps, and never where weights are sharded.
    """

    def __init__(
        self, every: int = 20, rows: int = 1, gradients_every: int = 200, limits: Limits | None = None
    ) -> None:
        super().__init__()
        if min(every, gradients_every) < 0 or rows < 1:
            raise ValueError(f"monitors read 1 row at least, every 0 steps at least, got {rows} and {every}")
        self.every, self.rows, self.gradients_every, self.limits = every, rows, gradients_every, limits or Limits()
        self.history, self.codes = History(), CodeUse()
        self._updates, self._measured = Updates(), 0

    def state_dict(self) -> dict[str, Any]:
        """What warnings compare with, so that a resumed run says the same."""
        codes = {name: each for name, each in vars(self.codes).items() if isinstance(each, Tensor)}
        return {"history": self.history.state(), "codes": codes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.history, self.codes = History(**state_dict["history"]), CodeUse(**state_dict["codes"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        del pl_module
        self._measured = trainer.global_step

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        del optimizer
        observes = self._observes(trainer.global_step + 1) and pl_module.automatic_optimization
        if observes and isinstance(pl_module, TransformerModule) and pl_module.model:
            self._updates.before(pl_module.model)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """All ranks measure together."""
        del outputs, batch_idx
        step = trainer.global_step
        observes = self._observes(step) and step > self._measured
        if not observes or not isinstance(pl_module, TransformerModule) or type(batch) is not PackedBatch:
            return
        self._measured = step
        figures = self._figures(trainer, pl_module, batch)
        for logger in trainer.loggers:
            logger.log_metrics({f"{MONITOR_PREFIX}{name}": value for name, value in figures.items()}, step - 1)
        logged = trainer.callback_metrics
        of_step = {name: float(logged[f"train/{name}"]) for name in OF_STEP if f"train/{name}" in logged}
        self._warn(trainer, {**figures, **of_step}, step)

    def _observes(self, step: int) -> bool:
        return bool(self.every) and step % self.every == 0

    def _figures(self, trainer: L.Trainer, module: TransformerModule, batch: PackedBatch) -> dict[str, float]:
        model, step = module.trained, trainer.global_step
        observer = Observer(model=model, rows=self.rows, precision=trainer.precision_plugin.forward_context)
        sample, offset = observer.sample(batch), module.space.image_offset
        figures = ratios(dict(self._updates.after(model).over_ranks()))
        media, _ = module.entering(sample, step)
        found = measure_sample(observer, sample, media, offset)
        self.codes.add(found.predicted, found.targets, offset)
        sums = found.sums.add(document_sums(sample, module.space.specials))
        figures |= {**sums.over_ranks(), **self.codes.figures()}
        gradients = self.gradients_every and step % self.gradients_every == 0
        if gradients and not isinstance(trainer.strategy, ShardedStrategy):
            with observer.quietly():
                figures |= modality_gradients(model, module.terms(sample, step))
        return figures

    def _warn(self, trainer: L.Trainer, figures: dict[str, float], step: int) -> None:
        if step <= self.limits.after:
            return
        for name, message in warnings(figures, self.history, self.limits, step):
            if name not in self.history.warned:
                self.history.warned.append(name)
                if trainer.is_global_zero:
                    say(f"warning: step {step}: {message}")
        self.history.follow(figures, step)
