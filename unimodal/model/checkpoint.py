"""Model weights on disk: config.json, model.safetensors, token_space.json. No pickle is read or written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from tokenizers_vq.identity import check_finite
from tokenizers_vq.token_space import TokenSpace
from tokenizers_vq.weights_file import write_weights
from unimodal.model.config import ModelConfig
from unimodal.model.model import TOKENS, UnifiedModel
from unimodal.model.old_names import state_name, upgrade_model_config, upgrade_state

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
HEAD, EMBEDDING = f"heads.{TOKENS}.weight", "trunk.embedding.weight"


def save_model(model: UnifiedModel, space: TokenSpace, folder: Path) -> None:
    """Write a model and its token space into a folder. A tied head is written once, as the embedding."""
    if model.config.vocab_size != space.vocab_size:
        raise ValueError(f"a vocabulary of {model.config.vocab_size} does not fit {space.vocab_size} ids")
    check_finite(model.state_dict(), f"{folder} is not written")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.trunk.tied_head:
        del tensors[HEAD]
    write_weights(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(model.config.to_dict(), indent=2))
    space.save(folder)


def read_config(folder: Path) -> ModelConfig:
    """The architecture of a model on disk. Raises ValueError with the reason where there is none."""
    try:
        return ModelConfig.from_dict(upgrade_model_config(json.loads((folder / CONFIG_FILE).read_text())))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} does not hold a model: {' '.join(str(error).split())[:300]}") from error


def open_model(folder: Path) -> tuple[UnifiedModel, TokenSpace]:
    """Open what `save_model` or an earlier version wrote, in evaluation mode.

    Raises ValueError with the reason where it cannot.
    """
    config = read_config(folder)
    try:
        tensors = {name: _aligned(tensor) for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
        model = assembled(config, upgrade_state(tensors))
        check_finite(tensors, WEIGHTS_FILE)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} does not hold a model: {reason}") from error
    space = TokenSpace.open(folder)
    if space.vocab_size != config.vocab_size:
        raise ValueError(f"{folder}: the model has {config.vocab_size} ids, its token space {space.vocab_size}")
    return model.eval().requires_grad_(False), space


@contextmanager
def opened_weights(folder: Path) -> Iterator[dict[str, Any]]:
    """The weights on disk by today's names, each read when it is sliced; a tied head is the embedding.

    Raises ValueError with the reason where there are none.
    """
    tied = read_config(folder).trunk.tied_head
    try:
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            found = {state_name(name): file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            yield {**found, HEAD: found[EMBEDDING]} if tied and EMBEDDING in found else found
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder} does not hold a model: {' '.join(str(error).split())[:300]}") from error


def assembled(config: ModelConfig, tensors: dict[str, Tensor]) -> UnifiedModel:
    """A model of these very tensors. Raises RuntimeError for one that is missing, unknown or of another shape."""
    with torch.device("meta"):
        model = UnifiedModel(config)
    if config.trunk.tied_head and EMBEDDING in tensors:
        tensors = {**tensors, HEAD: tensors[EMBEDDING]}
    model.load_state_dict(tensors, assign=True)
    model.tie_head()
    return model


def _aligned(tensor: Tensor) -> Tensor:
    """A copy where torch's own tensors begin.

    In a file a tensor begins at any byte, and CPU kernels sum in another order, or slower, from odd addresses: the last
    bit of a logit would depend on the length of the file's header.
    """
    return tensor.clone()
