"""Writes sharded checkpoints one after the other: at once, or in a thread while training continues."""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from unimodal.terminal import say
from unimodal.training.parallel.checkpoint import save_sharded


class CheckpointWriter:
    """One checkpoint at a time, in the order of the calls, which all ranks make alike.

    A checkpoint in the background is a copy in host memory of what a rank holds, made before `save` returns; ranks
    wait for each other in a process group that training does not use. A checkpoint that is to be removed stays until
    the one that is being written is whole, and for good where that cannot be written.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._group: dist.ProcessGroup | None = None
        self._lock = threading.Lock()
        self._writing = False
        self._error: OSError | None = None
        self._obsolete: list[Path] = []

    def save(
        self, path: Path, tensors: Mapping[str, Tensor], rest: Mapping[str, Any], *, in_background: bool = False
    ) -> None:
        """Write a checkpoint, once the one before is written.

        Raises OSError where one of the two cannot be: for a checkpoint in the background, by the next call.
        """
        self.wait()
        buffer = io.BytesIO()
        torch.save(dict(rest), buffer)
        if not in_background:
            save_sharded(path, tensors, buffer.getvalue())
            return
        if self._group is None and dist.is_initialized():
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        self._writing = True
        arguments = (path, copies, buffer.getvalue())
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def remove(self, path: Path) -> None:
        """Remove a checkpoint, once the one that is being written is whole."""
        with self._lock:
            if self._writing or self._error is not None:
                self._obsolete.append(path)
                return
        shutil.rmtree(path, ignore_errors=True)

    def wait(self) -> None:
        """Until nothing is being written. Raises OSError, once, where the last checkpoint could not be."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            self._obsolete.clear()
            raise error

    def _write(self, path: Path, tensors: Mapping[str, Tensor], rest: bytes) -> None:
        try:
            save_sharded(path, tensors, rest, self._group)
        except Exception as error:  # raised by `wait`, in the thread that trains
            self._error = error if isinstance(error, OSError) else OSError(f"{path} could not be written: {error}")
            if not dist.is_initialized() or dist.get_rank() == 0:
                say(f"{self._error}; the checkpoint before it is kept, and the run ends at the next one")
        with self._lock:
            self._writing = False
            obsolete, self._obsolete = ([], self._obsolete) if self._error is not None else (self._obsolete, [])
        for old in obsolete:
            shutil.rmtree(old, ignore_errors=True)
