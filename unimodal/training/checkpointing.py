"""Checkpoints that survive a kill: written beside, then renamed; read without pickle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from unimodal.terminal import say

SOUND = "is_sound"
"""Of a checkpoint that is about to be written: whether its weights are finite. It is not written itself."""


class SoundCheckpoints:
    """Refuses checkpoints of weights that are not finite, and then leaves those that they were to take the place of."""

    def __init__(self) -> None:
        self._refused = False

    def is_worth_keeping(self, checkpoint: dict[str, Any], path: str | Path) -> bool:
        """Whether a checkpoint is to be written; the first rank says so where it is not."""
        self._refused = not checkpoint.pop(SOUND, True)
        if self._refused and rank_zero_only.rank == 0:
            say(f"{path} is not written: the weights or the last gradients are not finite")
        return not self._refused

    def may_remove(self) -> bool:
        """False once a checkpoint was refused: what is removed then is the last good one."""
        return not self._refused


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint is there whole or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self._sound = SoundCheckpoints()

    def remove_checkpoint(self, path: str | Path) -> None:
        if self._sound.may_remove():
            super().remove_checkpoint(path)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if not self._sound.is_worth_keeping(checkpoint, path):
            return
        partial = f"{path}.partial"
        super().save_checkpoint(checkpoint, partial, storage_options)
        os.replace(partial, path)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        del weights_only
        if Path(path).is_dir():
            raise ValueError(f"{path} is a checkpoint of sharded training: resume with --trainer.strategy sharded")
        try:
            return super().load_checkpoint(path, map_location or _on_cpu, weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200] or "it ends too early"
            raise ValueError(f"{path} cannot be read as a checkpoint: {reason}") from error
        except Exception as error:
            raise ValueError(f"{path} holds more than plain tensors and values, or is damaged; not loaded") from error


def _on_cpu(storage: Any, location: str) -> Any:
    del location
    return storage
