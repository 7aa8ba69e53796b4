"""Steps that are skipped: the batch is kept, so that it can be looked at, and too many in a row end the run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipelines.batch import PackedBatch
from data_pipelines.media_batch import PackedMedia
from tokenizers_vq.weights_file import write_weights
from unimodal.model.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from unimodal.model.model import UnifiedModel
from unimodal.model.sharded import local_parts, shard_group
from unimodal.terminal import say
from unimodal.training.precision import loss_scale

SKIPPED_IN_A_ROW = 3
"""So many steps without a finite gradient end a run."""
OVERFLOWS_IN_A_ROW = 20
"""So many overflows of float16's gradients end a run: its loss scale (65,536 at first) is halved after each of them."""
KEPT_BATCHES = 3
"""So many skipped batches are written, with the weights that met them."""
FOLDER, BATCH_FILE = "skipped", "batch.pt"


class Diverged(RuntimeError):
    """A run whose losses or gradients are no longer finite; `train.py` ends with exit code 3."""


class SkippedSteps:
    """Decides after each backward pass, with all ranks alike, whether the step is skipped and whether it is the last.

    A step is skipped whose loss or gradient is not finite on any rank. It is the last where any rank is to stop. Under
    a loss scale, gradients that are not finite beside a finite loss are an overflow: the scale is halved, as it is
    meant to be, and they are counted apart from faults.
    """

    def __init__(self) -> None:
        self.total = self.in_a_row = 0
        self.overflows = self.overflows_in_a_row = 0
        self.stop_asked = self.stops = False
        self.last_batch: PackedBatch | None = None
        """Of this rank."""

    def skips(self, norm: Tensor, loss: Tensor, *, scaled: bool = False) -> bool:
        """Whether this step is skipped; scaled: under a loss scale. The host waits for the device here, once a step."""
        bad = torch.isfinite(norm.double() + loss.double()).logical_not()
        bad_loss = torch.isfinite(loss).logical_not().to(bad.device)
        found = torch.stack([bad, bad_loss, torch.tensor(self.stop_asked, device=bad.device)]).to(torch.int32)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        skip, loss_is_bad, self.stops = map(bool, found.tolist())
        overflow = skip and scaled and not loss_is_bad
        if not skip:
            self.in_a_row = self.overflows_in_a_row = 0
        elif overflow:
            self.overflows, self.overflows_in_a_row = self.overflows + 1, self.overflows_in_a_row + 1
        else:
            self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
            self.overflows_in_a_row = 0
        return skip

    def report(self, trainer: Any, model: UnifiedModel, norm: Tensor, loss: Tensor) -> None:
        """Say what happened, and keep the last batch of this rank where it was no overflow.

        Raises Diverged after SKIPPED_IN_A_ROW faults or OVERFLOWS_IN_A_ROW overflows.
        """
        if self.overflows_in_a_row:
            self._report_overflow(trainer)
            return
        step, where = trainer.global_step, ""
        if self.total <= KEPT_BATCHES and self.last_batch is not None:
            folder = Path(trainer.default_root_dir) / FOLDER / f"step-{step:06d}-rank-{trainer.global_rank}"
            keep(folder, self.last_batch, model)
            where = f"; to see where it began: unimodal replay {folder}"
        what = f"the loss is {float(loss):.4g} and the gradient norm is {float(norm):.4g} at step {step}"
        if trainer.is_global_zero:
            say(f"{what}: the step is skipped, {self.total} so far{where}")
        if self.in_a_row >= SKIPPED_IN_A_ROW:
            raise Diverged(f"{what}, {self.in_a_row} steps in a row: lower the learning rate; {_last_good(trainer)}")

    def _report_overflow(self, trainer: Any) -> None:
        scale, step = loss_scale(trainer), trainer.global_step
        what = f"gradients overflow float16 at step {step} with a loss scale of {scale:.4g}"
        if self.overflows == 1 and trainer.is_global_zero:
            say(f"{what}: the step is skipped and the scale lowered; train/overflows counts such steps from here on")
        if self.overflows_in_a_row >= OVERFLOWS_IN_A_ROW:
            reason = f"{what}, {self.overflows_in_a_row} steps in a row"
            raise Diverged(f"{reason}: use bf16-mixed, or lower the learning rate; {_last_good(trainer)}")


def keep(folder: Path, batch: PackedBatch, model: UnifiedModel) -> None:
    """Write a batch and, where one rank holds them whole, the weights as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    batch = batch.to("cpu")
    fields = {item.name: getattr(batch, item.name) for item in dataclasses.fields(batch) if item.name != "media"}
    media = {name: vars(packed).copy() for name, packed in batch.media.items()}
    torch.save({**fields, "media": media}, folder / BATCH_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(model.config.to_dict(), indent=2))
    if shard_group(list(model.parameters())) is None:
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        write_weights(tensors, folder / WEIGHTS_FILE)


def kept_batch(folder: Path) -> PackedBatch:
    """What `keep` wrote. Raises ValueError where it is not there or damaged."""
    try:
        values = torch.load(folder / BATCH_FILE, map_location="cpu", weights_only=True)
        fields = {item.name for item in dataclasses.fields(PackedMedia)}
        media = {name: {k: v for k, v in packed.items() if k in fields} for name, packed in values["media"].items()}
        return PackedBatch(**{**values, "media": {name: PackedMedia(**packed) for name, packed in media.items()}})
    except Exception as error:
        raise ValueError(f"{folder} holds no batch of a skipped step: {' '.join(str(error).split())[:200]}") from error


def is_sound(model: UnifiedModel, skipped: SkippedSteps) -> bool:
    """Whether a checkpoint is worth writing: all weights are finite, on every rank, and so was the last step."""
    parts = local_parts([parameter.detach() for parameter in model.parameters()])
    sums = torch.stack([part.sum(dtype=torch.float64) for part in parts])
    found = torch.isfinite(sums).all().to(torch.int32)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return bool(found) and not skipped.in_a_row


def _last_good(trainer: Any) -> str:
    """Where to resume from: no checkpoint is written of weights that are not finite."""
    callback = trainer.checkpoint_callback
    folder = Path(callback.dirpath) if callback is not None and callback.dirpath else None
    found = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime) if folder and folder.is_dir() else []
    return f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
