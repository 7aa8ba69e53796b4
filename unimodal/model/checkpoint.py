"""Transformer weights on disk: config.json, model.safetensors, token_space.json. No pickle is read or written."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenizers_vq.token_space import TokenSpace
from unimodal.model.config import TransformerConfig
from unimodal.model.transformer import Transformer

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def save_transformer(transformer: Transformer, space: TokenSpace, folder: Path) -> None:
    """Write a transformer and its token space into a folder."""
    if transformer.config.vocab_size != space.vocab_size:
        raise ValueError(f"a vocabulary of {transformer.config.vocab_size} does not fit {space.vocab_size} ids")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in transformer.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(transformer.config.to_dict(), indent=2))
    space.save(folder)


def open_transformer(folder: Path) -> tuple[Transformer, TokenSpace]:
    """Open what `save_transformer` wrote, in evaluation mode. Raises ValueError with the reason where it cannot."""
    try:
        config = TransformerConfig.from_dict(json.loads((folder / CONFIG_FILE).read_text()))
        tensors = {name: _aligned(tensor) for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
        with torch.device("meta"):
            transformer = Transformer(config)
        transformer.load_state_dict(tensors, assign=True)
    except (OSError, json.JSONDecodeError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder} does not hold a model: {reason}") from error
    space = TokenSpace.open(folder)
    if space.vocab_size != config.vocab_size:
        raise ValueError(f"{folder}: the model has {config.vocab_size} ids, its token space {space.vocab_size}")
    return transformer.eval().requires_grad_(False), space


def _aligned(tensor: Tensor) -> Tensor:
    """A copy where torch's own tensors begin.

    In a file a tensor begins at any byte, and CPU kernels sum in another order, or slower, from odd addresses: the last
    bit of a logit would depend on the length of the file's header.
    """
    return tensor.clone()
