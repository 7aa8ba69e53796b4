"""What a checkpoint belongs to: a run is resumed with the model and the data that it was saved with, or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
from torch import Tensor

IDENTITY = "belongs_to"
"""The key of checkpoints and states under which it stands."""

REMEDY = "resume with what it was saved with, or start anew in another folder"


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as JSON would hold them, so that a saved value equals a present one."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": type(value).__name__, **plain(asdict(value))}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def check_identity(saved: Any, present: Any, owner: str) -> None:
    """Raise ValueError that names the first difference between what was saved and what there is.

    `owner` is whose state it is, "the checkpoint" say. Nothing saved, by an earlier version, is no difference.
    """
    if saved is None:
        return
    found = _difference(saved, plain(present), "")
    if found is not None:
        name, was, now = found
        raise ValueError(f"{owner} belongs to another run: {name} was {was!r:.120}, now it is {now!r:.120}; {REMEDY}")


def check_weights(saved: Mapping[str, Tensor], present: Mapping[str, Tensor], owner: str) -> None:
    """Raise ValueError that names the first weight that is missing, unknown or of another shape."""
    for name, tensor in present.items():
        if name not in saved:
            raise ValueError(f"{owner} belongs to another model: it holds no {name}; {REMEDY}")
        if saved[name].shape != tensor.shape:
            shapes = f"{tuple(saved[name].shape)} there and {tuple(tensor.shape)} here"
            raise ValueError(f"{owner} belongs to another model: {name} is {shapes}; {REMEDY}")
    unknown = next((name for name in saved if name not in present), None)
    if unknown is not None:
        raise ValueError(f"{owner} belongs to another model: it holds {unknown}, which this model has not; {REMEDY}")


def check_finite(tensors: Mapping[str, Tensor], owner: str) -> None:
    """Raise ValueError that names the first tensor with a value that is not a finite number."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.detach().sum(dtype=torch.float64))):
            raise ValueError(f"{owner}: {name} holds values that are not finite numbers")


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256, in hex, over shape and bytes."""
    digest = hashlib.sha256(str(tuple(tensor.shape)).encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _difference(was: Any, now: Any, name: str) -> tuple[str, Any, Any] | None:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*was, *now)):
            inner = f"{name}.{key}" if name else str(key)
            if found := _difference(was.get(key), now.get(key), inner):
                return found
        return None
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        pairs = enumerate(zip(was, now, strict=True))
        return next((found for i, (a, b) in pairs if (found := _difference(a, b, f"{name}[{i}]"))), None)
    if isinstance(was, list) and isinstance(now, list) and any(isinstance(each, Mapping) for each in (*was, *now)):
        return (f"the number of {name}", len(was), len(now))
    return None if was == now else (name, was, now)
