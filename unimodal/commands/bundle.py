"""`unimodal bundle`: a model bundle of a checkpoint, however many ranks wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipelines.outputs import check_apart, check_folder
from tokenizers_vq.token_space import TokenSpace
from unimodal.bundle import Bundle
from unimodal.model.checkpoint import assembled
from unimodal.model.config import ModelConfig
from unimodal.terminal import say
from unimodal.training.averaging import AVERAGE, AVERAGED
from unimodal.training.checkpointing import AtomicCheckpointIO
from unimodal.training.lora import LORA_SCALE, with_products
from unimodal.training.parallel.checkpoint import WEIGHT_PREFIX, is_sharded, load_tensors, read_rest

PREFIX = "model."
"""Of the model's parameters in a training module."""


def run(checkpoint: Path, tokenizers: Path, out: Path) -> int:
    """Write the bundle. Raises ValueError for what is no checkpoint of a transformer."""
    check_folder(out)
    check_apart(out, [checkpoint, tokenizers])
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: give another folder")
    values, weights = opened(checkpoint)
    config, space = ModelConfig.from_dict(values["model_config"]), TokenSpace.from_dict(values["token_space"])
    Bundle.beside(assembled(config, weights).eval(), space, tokenizers).save(out)
    say(f"the model of step {values['global_step']} is in {out}")
    return 0


def opened(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint holds beside tensors, and the model's weights, whole: their averages where it keeps any, and
    with the products of adapters."""
    if is_sharded(checkpoint):
        values = read_rest(checkpoint)
        shapes = {name: tensor.shape for name, tensor in values["state_dict"].items()}
        averages = {name: f"optimizer_0.{name}.{AVERAGE}" for name in values.get(AVERAGED, ()) if name}
        whole = {WEIGHT_PREFIX + name: torch.empty(shape) for name, shape in shapes.items()}
        whole |= {stored: torch.empty(shapes[name]) for name, stored in averages.items()}
        load_tensors(checkpoint, whole)
        state = {name: whole[WEIGHT_PREFIX + name] for name in shapes}
        state |= {name: whole[stored] for name, stored in averages.items()}
    elif checkpoint.is_file():
        values = AtomicCheckpointIO().load_checkpoint(checkpoint)
        states = values["optimizer_states"][0]["state"] if AVERAGED in values else {}
        numbered = [(name, number) for number, name in enumerate(values.get(AVERAGED, ())) if name]
        state = {**values["state_dict"], **{name: states[number][AVERAGE] for name, number in numbered}}
    else:
        raise ValueError(f"{checkpoint} is not a checkpoint of train.py")
    if "model_config" not in values:
        raise ValueError(f"{checkpoint} holds no model config: an earlier version wrote it, or it is a tokenizer's")
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    return values, with_products(weights, values.get(LORA_SCALE, 1.0))
