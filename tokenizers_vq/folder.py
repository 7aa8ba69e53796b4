"""The folder that an image tokenizer or autoencoder is kept in: config.json and model.safetensors, never a pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenizers_vq.backbones import PatchBackboneConfig, VQGANBackboneConfig
from tokenizers_vq.field_types import from_plain
from tokenizers_vq.identity import check_finite
from tokenizers_vq.quantizers import FSQConfig, LFQConfig, ResidualVQConfig, VQConfig
from tokenizers_vq.weights_file import write_weights

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
KINDS: dict[str, type[Any]] = {
    "patch": PatchBackboneConfig,
    "vqgan": VQGANBackboneConfig,
    "vq": VQConfig,
    "residual_vq": ResidualVQConfig,
    "fsq": FSQConfig,
    "lfq": LFQConfig,
}
"""Backbones and quantizers by the name that config.json has for them."""
UNNAMED_KIND = "vq"
"""What a folder holds whose config.json tells no kind."""

Module = TypeVar("Module", bound=nn.Module)


def part_to_dict(part: Any) -> dict[str, Any]:
    """A backbone's or quantizer's config as plain values."""
    names = {kind: name for name, kind in KINDS.items()}
    return {"kind": names[type(part)], **dataclasses.asdict(part)}


def part_from_dict(values: dict[str, Any]) -> Any:
    """The inverse of `part_to_dict`. Raises KeyError, TypeError or AttributeError for anything else."""
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return from_plain(KINDS[fields.pop("kind")], fields)


def check_kind(values: Any, kind: str) -> None:
    """Raise ValueError where a config.json is not of this kind."""
    found = values.get("kind", UNNAMED_KIND) if isinstance(values, dict) else type(values).__name__
    if found != kind:
        raise ValueError(f"{CONFIG_FILE} is of kind {found!r}, not {kind!r}")


def one_line(error: Exception) -> str:
    """The first 200 characters of what an error says, without line ends."""
    return " ".join(str(error).split())[:200]


def content_hash(config: dict[str, Any], weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over config and weights."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_module(folder: Path, config: dict[str, Any], module: nn.Module) -> None:
    """Write config.json and model.safetensors. Raises ValueError, and writes nothing, where a weight is not finite."""
    check_finite(module.state_dict(), f"{folder} is not written")
    folder.mkdir(parents=True, exist_ok=True)
    write_weights({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2))


def open_module(folder: Path, build: Callable[[Any], Module], holds: str) -> Module:
    """What `build` makes of config.json, with the folder's weights, in evaluation mode.

    Raises ValueError where the folder does not hold `holds`, with the reason.
    """
    try:
        values = json.loads((folder / CONFIG_FILE).read_text())
        with torch.random.fork_rng(devices=[]):  # the first weights are drawn and thrown away
            module = build(values)
        weights = load_file(folder / WEIGHTS_FILE)
        module.load_state_dict(weights)
        check_finite(weights, WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder} does not hold {holds}: {one_line(error)}") from error
    return module.eval().requires_grad_(False)
