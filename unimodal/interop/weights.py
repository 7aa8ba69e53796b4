"""Weights: tensors of a folder of theirs, under our names. Only safetensors are opened, never a pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unimodal.interop.architectures.base import Architecture
from unimodal.model.checkpoint import EMBEDDING, HEAD, WEIGHTS_FILE
from unimodal.model.config import ModelConfig
from unimodal.model.model import MULTI_TOKEN_WEIGHTS, UnifiedModel

INDEX_FILE = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
COMPUTED = "rotary_emb.inv_freq"
"""Files of old versions hold this buffer; it follows from the config."""


class RenamedWeights(NamedTuple):
    """Tensors under our names, and how many of theirs belong to an image encoder and were skipped."""

    tensors: dict[str, Tensor]
    skipped: int


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder under their own names; files of one model or of its shards.

    Raises ValueError for missing, broken or pickled files.
    """
    tensors: dict[str, Tensor] = {}
    for file in _files(folder):
        try:
            tensors.update(load_file(file))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    return tensors


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if index.is_file():
        return [folder / name for name in _shard_names(index)]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder} holds pickled weights ({pickles[0]}), which are never opened: save them as safetensors"
        )
    raise ValueError(f"{folder} holds no weights: {WEIGHTS_FILE} is missing")


def _shard_names(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of shards: {error!r}") from error
    strange = [name for name in names if name != Path(str(name)).name]
    if strange:
        raise ValueError(f"{index} names a file outside its folder: {strange[0]!r}")
    return names


def to_our_names(tensors: dict[str, Tensor], architecture: Architecture, config: ModelConfig) -> RenamedWeights:
    """Their tensors -> those of a `UnifiedModel` of this config, with their bits and types. A tied head is not in it.

    Raises ValueError for a weight that is missing, unknown, of another shape or no float, and for a tied head that is
    stored and differs from the embedding.
    """
    names = architecture.names(config)
    theirs = {name: x for name, x in tensors.items() if not name.startswith(architecture.skipped)}
    skipped = len(tensors) - len(theirs)
    theirs = {name: x for name, x in theirs.items() if not name.endswith(COMPUTED)}
    if config.trunk.tied_head:
        _drop_tied_head(theirs, names.pop(HEAD), names[EMBEDDING])
    theirs = architecture.collected(theirs, config)
    check_names(set(theirs), set(names.values()), architecture.model_type)
    with torch.device("meta"):
        expected = UnifiedModel(config).state_dict()
    ours = {
        ours: fitted(architecture.convert(ours, theirs[name], config), expected[ours].shape, name)
        for ours, name in names.items()
    }
    return RenamedWeights(ours, skipped)


def to_their_names(model: UnifiedModel, architecture: Architecture) -> dict[str, Tensor]:
    """Copies on the CPU under their names, a tied head among them; theirs has no multi-token heads."""
    names = architecture.names(model.config)
    found = {
        names[ours]: architecture.restore(ours, tensor, model.config).detach().cpu().clone()
        for ours, tensor in model.state_dict().items()
        if not ours.startswith(MULTI_TOKEN_WEIGHTS)
    }
    return architecture.in_memory(found)


def _drop_tied_head(theirs: dict[str, Tensor], head: str, embedding: str) -> None:
    stored = theirs.pop(head, None)
    if stored is not None and embedding in theirs and not torch.equal(stored, theirs[embedding]):
        raise ValueError(f"the config ties the head to the embedding, but {head} is another tensor")


def check_names(found: set[str], wanted: set[str], kind: str) -> None:
    """Raise ValueError where weights of this kind of model are missing, or others are there."""
    if missing := wanted - found:
        raise ValueError(f"the checkpoint lacks {len(missing)} weights of a {kind}, the first is {min(missing)}")
    if strange := found - wanted:
        raise ValueError(f"a {kind} has not {len(strange)} of these weights, the first is {min(strange)}")


def fitted(tensor: Tensor, shape: torch.Size, name: str) -> Tensor:
    """The weight, which has this shape. Raises ValueError for another shape and for what is no float."""
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{name} is of type {tensor.dtype}: save the weights in a floating-point type")
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, its config says {tuple(shape)}")
    return tensor
