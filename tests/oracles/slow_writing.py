"""A callback under which the disk is slow, stands still or is full while a sharded checkpoint is written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import lightning as L

from unimodal.training.parallel import checkpoint

Disk = Literal["slow", "still", "full"]


class Writing(L.Callback):
    """From the `first`-th checkpoint on: `slow` waits a second before tensors are written, `still` touches `flag` after
    them and never ends, `full` fails on rank 1, or on the only one."""

    def __init__(self, disk: Disk, first: int = 1, flag: Path | None = None) -> None:
        super().__init__()
        self.disk, self.first, self.flag, self.count = disk, first, flag, 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        del pl_module, stage
        save = checkpoint.save

        def slowly(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count < self.first:
                return save(*arguments, **named)
            if self.disk == "slow":
                time.sleep(1)
            if self.disk == "full" and trainer.global_rank == trainer.world_size - 1:
                writer = named["storage_writer"]
                writer.write_data = self._full
            saved = save(*arguments, **named)
            if self.disk == "still":
                assert self.flag is not None
                Path(self.flag).touch()
                time.sleep(3600)
            return saved

        checkpoint.save = slowly

    def _full(self, *arguments: Any) -> Any:
        raise OSError("No space left on device")
