"""Checkpoints of many ranks: a folder with the tensors in PyTorch's distributed format, and all else beside them.

Nothing is unpickled that could run code: the tensors' index is read by an unpickler that knows its few classes alone.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

REST_FILE, INDEX_FILE = "rest.pt", ".metadata"
OLD_SUFFIX = ".old"
WEIGHT_PREFIX = "state_dict."
"""Of the names of weights; those of optimizer states start with `optimizer_0.` and so on."""

INDEX_MODULES = ("torch.distributed.checkpoint.", "torch.distributed._shard.", "torch.distributed.tensor")
INDEX_NAMES = {
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("torch._utils", "_rebuild_device"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}
"""Classes of an index, beside those of INDEX_MODULES and types of numbers."""


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint is a folder of this form."""
    return (path / REST_FILE).is_file()


def training_tensors(module: nn.Module, optimizers: Iterable[Any]) -> dict[str, Tensor]:
    """Weights and optimizer states by name, as they lie on this rank; states that are missing are made."""
    tensors = {WEIGHT_PREFIX + name: tensor for name, tensor in module.state_dict().items()}
    names = {parameter: name for name, parameter in module.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        if hasattr(optimizer, "prepare"):
            optimizer.prepare()
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer_{number}.{names[parameter]}.{key}"] = value
    return tensors


def save_sharded(
    path: Path, tensors: Mapping[str, Tensor], rest: bytes, group: dist.ProcessGroup | None = None
) -> None:
    """Write a checkpoint under another name and rename it. All ranks call it with the same names of tensors.

    rest: what `torch.save` makes of all else. group: by which ranks wait for each other; None is that of training.
    Raises OSError, on all ranks, where one of them could not write.
    """
    folder = path.with_name(path.name + ".partial")
    try:
        _first_rank_alone(partial(_make_empty, folder), group)
        save(dict(tensors), storage_writer=FileSystemWriter(folder, single_file_per_rank=True), process_group=group)
        _first_rank_alone(partial(_put_in_place, folder, path, rest), group)
    except CheckpointException as error:
        causes = [" ".join(str(cause[0]).split()) for cause in error.failures.values()]
        raise OSError(f"{path} could not be written: {causes[0][:300]}") from error


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _put_in_place(folder: Path, path: Path, rest: bytes) -> None:
    """The folder, whole now, takes the place of the checkpoint of that path."""
    (folder / REST_FILE).write_bytes(rest)
    old = path.with_name(path.name + OLD_SUFFIX)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old) if path.is_dir() else path.unlink()
    os.replace(folder, path)
    shutil.rmtree(old, ignore_errors=True)


def _first_rank_alone(act: Callable[[], None], group: dist.ProcessGroup | None) -> None:
    """The first rank acts and the others wait for it. Raises OSError on all of them where it cannot."""
    reason: list[str | None] = [None]
    if _rank() == 0:
        try:
            act()
        except OSError as error:
            reason = [str(error)]
    if dist.is_initialized():
        dist.broadcast_object_list(reason, src=0, group=group)
    if reason[0] is not None:
        raise OSError(f"the checkpoint could not be written: {reason[0]}")


def restore_interrupted(folder: Path) -> None:
    """Put back checkpoints of a run that was killed between taking the old one away and putting the new one there."""
    for old in folder.glob(f"*.ckpt{OLD_SUFFIX}"):
        path = old.with_name(old.name.removesuffix(OLD_SUFFIX))
        if not path.exists():
            with suppress(FileNotFoundError):  # another rank was faster
                os.rename(old, path)


def read_rest(path: Path) -> dict[str, Any]:
    """All of a checkpoint but its tensors; of the weights, tensors without memory.

    Raises ValueError for what is no checkpoint of this form.
    """
    if not is_sharded(path):
        raise ValueError(f"{path} is not a checkpoint of sharded training: resume without --trainer.strategy sharded")
    try:
        rest = torch.load(path / REST_FILE, map_location="cpu", weights_only=True)
        known = _SafeReader(path).read_metadata().state_dict_metadata
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read as a checkpoint: {reason}") from error
    weights = {
        name.removeprefix(WEIGHT_PREFIX): stored for name, stored in known.items() if name.startswith(WEIGHT_PREFIX)
    }
    shapes = {name: stored.size for name, stored in weights.items() if isinstance(stored, TensorStorageMetadata)}
    return {**rest, "state_dict": {name: torch.empty(size, device="meta") for name, size in shapes.items()}}


def load_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, sharded in any way or whole, with those of a checkpoint.

    Raises ValueError for one that the checkpoint does not hold.
    """
    reader = _SafeReader(path)
    stored = reader.read_metadata().state_dict_metadata
    missing = next((name for name in tensors if name not in stored), None)
    if missing is not None:
        raise ValueError(f"{path} holds no {missing}: it belongs to another run")
    wanted = {name: tensor.detach() for name, tensor in tensors.items()}
    load(wanted, storage_reader=reader, planner=DefaultLoadPlanner(), no_dist=not dist.is_initialized())


class _SafeReader(FileSystemReader):
    """Reads the index without running what it might hold."""

    def read_metadata(self, *given: Any, **named: Any) -> Metadata:
        del given, named
        metadata = _IndexUnpickler(io.BytesIO((Path(self.path) / INDEX_FILE).read_bytes())).load()
        if not isinstance(metadata, Metadata):
            raise ValueError(f"{self.path}: its index is a {type(metadata).__name__}")
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Classes of an index; functions and everything else are refused."""
        found = getattr(torch, name, None) if module == "torch" else None
        known = (module, name) in INDEX_NAMES or isinstance(found, torch.dtype)
        if not known and not module.startswith(INDEX_MODULES):
            raise pickle.UnpicklingError(f"an index of tensors does not hold {module}.{name}")
        result = super().find_class(module, name)
        if not known and not isinstance(result, type):
            raise pickle.UnpicklingError(f"an index of tensors does not hold {module}.{name}")
        return result


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
