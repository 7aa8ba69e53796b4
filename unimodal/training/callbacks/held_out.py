"""Held-out loss beside the loss of training: a line at each validation, an alarm when it turns, and the best weights.

A model that memorises gets better on what it trains on and worse on what is held out. Nothing else in a run shows it:
samples in training stay good, and the last weights are not the best ones.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from data_pipelines.spec import data_spec
from unimodal.bundle import Bundle
from unimodal.terminal import say
from unimodal.training.averaging import averaged_weights
from unimodal.training.module import TransformerModule
from unimodal.training.parallel.gathering import whole_model

BEST = "best"
"""The folder of the best weights, in that of a run."""
TOTAL = "loss"
COMPARED = (TOTAL, "loss_text", "loss_image", "loss_flow")
"""Of the losses that are compared, as `train/NAME` and `val/NAME` are logged."""
KINDS_OF_LOSS = {"loss_text": "text", "loss_image": "image codes", "loss_flow": "latents"}


@dataclass(kw_only=True)
class LowestLoss:
    """Of one name: the lowest held-out loss, the step of it, and what training and validation have now."""

    lowest: float = math.inf
    step: int = 0
    last: float = math.inf
    training: float = math.nan

    def add(self, value: float, step: int, training: float) -> bool:
        """Note a validation; returns whether it is the lowest."""
        self.last, self.training = value, training
        if value >= self.lowest:
            return False
        self.lowest, self.step = value, step
        return True

    def turned(self, tolerance: float) -> bool:
        """Whether the last one is more than this share above the lowest."""
        return self.last > self.lowest * (1 + tolerance)


@dataclass(kw_only=True)
class HeldOutLosses:
    """All names, and the step whose weights the first rank has kept, -1 for none; what a checkpoint holds."""

    losses: dict[str, LowestLoss] = field(default_factory=dict)
    kept: int = -1

    def state(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> HeldOutLosses:
        """See `state`."""
        return cls(losses={name: LowestLoss(**one) for name, one in state["losses"].items()}, kept=state["kept"])


class BestWeights(NamedTuple):
    """Where the best weights lie, and the loss by which they are the best."""

    folder: Path
    loss: LowestLoss


class HeldOut(L.Callback):
    """Compares held-out losses with their lowest values after each validation.

    tolerance: the share above the lowest from which a loss has turned, which is warned of once for each kind of loss.
    keep_best: whether the weights with the lowest total are kept as a bundle, the folder `best` of the run. Those
        of Lightning's own averaging are not: its validation does not leave the average behind.
    """

    def __init__(self, tolerance: float = 0.02, keep_best: bool = True) -> None:
        super().__init__()
        if tolerance < 0:
            raise ValueError(f"held_out.tolerance is at least 0, got {tolerance}")
        self.tolerance, self.keep_best = tolerance, keep_best
        self.found = HeldOutLosses()
        self._warned: set[str] = set()

    @property
    def turned(self) -> bool:
        """Whether the last weights are worse than the best by more than the tolerance."""
        total = self.found.losses.get(TOTAL)
        return total is not None and total.turned(self.tolerance)

    def best(self, trainer: L.Trainer) -> BestWeights | None:
        """The best weights of this run, if they were kept."""
        folder, total = Path(trainer.default_root_dir) / BEST, self.found.losses.get(TOTAL)
        if total is None or self.found.kept != total.step or not folder.is_dir():
            return None
        return BestWeights(folder, total)

    def state_dict(self) -> dict[str, Any]:
        """Lowest losses, so that a resumed run compares with them."""
        return self.found.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.found = HeldOutLosses.of_state(state_dict)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """All ranks decide alike: what is logged is the mean of all."""
        fits = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not fits or not isinstance(pl_module, TransformerModule):
            return
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        losses = {
            name: logged[f"val/{name}"] for name in COMPARED if math.isfinite(logged.get(f"val/{name}", math.inf))
        }
        if TOTAL not in losses:
            if f"val/{TOTAL}" in logged and trainer.is_global_zero:
                say(f"held out, step {trainer.global_step}: the loss is {logged[f'val/{TOTAL}']}, no number to compare")
            return
        best = False
        for name, value in losses.items():
            one = self.found.losses.setdefault(name, LowestLoss())
            lowest = one.add(value, trainer.global_step, logged.get(f"train/{name}", math.nan))
            best |= lowest and name == TOTAL
        if trainer.is_global_zero:
            say(f"held out, step {trainer.global_step}: {self._shown()}")
            self._warn()
        if best and self.keep_best and not _lightning_averages(trainer) and pl_module.model is not None:
            with averaged_weights(pl_module.model, trainer.optimizers):
                self._keep(trainer, pl_module)

    def _shown(self) -> str:
        one = self.found.losses
        return "  ".join(f"{name} {one[name].last:.3f} (training {one[name].training:.3f})" for name in one)

    def _warn(self) -> None:
        for name, kind in KINDS_OF_LOSS.items():
            one = self.found.losses.get(name)
            if one is None or name in self._warned or not one.turned(self.tolerance):
                continue
            self._warned.add(name)
            say(
                f"warning: the held-out loss of {kind} turned: {one.lowest:.3f} at step {one.step}, {one.last:.3f} now "
                f"and {one.training:.3f} in training. The model memorises: train for fewer steps, make more copies "
                "(`tokenize --copies --augment`), or raise model.trunk.dropout and weight_decay"
            )

    def _keep(self, trainer: L.Trainer, module: TransformerModule) -> None:
        spec = data_spec(trainer)
        if spec.tokenizers is None or module.model is None:
            return
        model = whole_model(module.model, keep=trainer.is_global_zero)
        if model is None:
            return
        folder = Path(trainer.default_root_dir) / BEST
        partial = folder.with_suffix(".partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            Bundle.beside(model.eval(), module.space, spec.tokenizers).save(partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        except (OSError, ValueError) as error:  # other ranks train already, and would wait for this one
            self.found.kept = -1
            say(f"warning: the best weights are not kept, and training continues: {error}")
        else:
            self.found.kept = trainer.global_step


def _lightning_averages(trainer: L.Trainer) -> bool:
    return any(isinstance(each, WeightAveraging) for each in trainer.callbacks)  # pyright: ignore
