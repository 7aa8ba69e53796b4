"""SigLIP's vision model, from a local folder of transformers, as the ViT of a model here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizers_vq.media import PatchSpec
from unimodal.interop.weights import read_weights
from unimodal.model.branches.vision.siglip import SiglipEncoder
from unimodal.model.checkpoint import CONFIG_FILE
from unimodal.model.config import VisionConfig
from unimodal.model.sharded import write_rows

SIGLIP_LAYER = {
    "attention_norm": "layer_norm1",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.out_proj",
    "mlp_norm": "layer_norm2",
    "up_proj": "mlp.fc1",
    "down_proj": "mlp.fc2",
}
"""Ours -> theirs, of a layer."""
PREFIXES = ("vision_model.", "")
ACTIVATION = "gelu_pytorch_tanh"
DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
"""Of transformers' SiglipVisionConfig, which configs written as differences leave out."""
PATCHES = "embeddings.patch_embedding.weight"


def siglip_config(folder: Path, *, max_patches: int, max_side: int) -> VisionConfig:
    """The config of the ViT in a folder; how many patches an image may have is the caller's choice.

    Raises ValueError where the folder holds no SigLIP, or one that this ViT cannot be.
    """
    try:
        values = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} does not hold a SigLIP model: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{folder} does not hold a SigLIP model: its {CONFIG_FILE} is no object")
    vision: dict[str, Any] = DEFAULTS | values.get("vision_config", values)
    if "siglip" not in str(vision.get("model_type", values.get("model_type", ""))):
        raise ValueError(f"{folder} does not hold a SigLIP model, but {values.get('model_type')!r}")
    if vision.get("hidden_act", ACTIVATION) != ACTIVATION:
        raise ValueError(f"{folder}: its activation is {vision['hidden_act']}, ours {ACTIVATION}")
    patch = vision["patch_size"]
    return VisionConfig(
        patches=PatchSpec(size=patch, max_patches=max_patches, max_side=max_side),
        grid_size=int(vision["num_patches"] ** 0.5) if "num_patches" in vision else vision["image_size"] // patch,
        dim=vision["hidden_size"],
        num_layers=vision["num_hidden_layers"],
        num_heads=vision["num_attention_heads"],
        hidden_dim=vision["intermediate_size"],
        norm_eps=vision["layer_norm_eps"],
    )


def siglip_names(num_layers: int) -> dict[str, str]:
    """Ours -> theirs."""
    both = ("weight", "bias")
    table = {f"patch_embedding.{kind}": f"embeddings.patch_embedding.{kind}" for kind in both}
    table["position_embedding"] = "embeddings.position_embedding.weight"
    for layer in range(num_layers):
        for ours, theirs in SIGLIP_LAYER.items():
            table |= {f"blocks.{layer}.{ours}.{kind}": f"encoder.layers.{layer}.{theirs}.{kind}" for kind in both}
    return table | {f"norm.{kind}": f"post_layernorm.{kind}" for kind in both}


@torch.no_grad()
def load_siglip(encoder: SiglipEncoder, folder: Path) -> None:
    """Fill an encoder of `siglip_config`'s shape; the pooling head of SigLIP is skipped.

    Raises ValueError for a weight that is missing or of another shape.
    """
    weights = dict(encoder.named_parameters())
    stored = read_weights(folder)
    for ours, theirs in siglip_names(encoder.config.num_layers).items():
        found = next((stored[prefix + theirs] for prefix in PREFIXES if prefix + theirs in stored), None)
        if found is None:
            raise ValueError(f"{folder} lacks {theirs}: it is not a SigLIP vision model, or not a whole one")
        flat = _of_patches(found, encoder.config.patch_size) if theirs == PATCHES else found
        if flat.shape != weights[ours].shape:
            raise ValueError(f"{folder}: {theirs} has shape {tuple(flat.shape)}, {tuple(weights[ours].shape)} is due")
        write_rows(weights[ours], flat)


def _of_patches(weight: Tensor, patch: int) -> Tensor:
    """A convolution's weights, or SigLIP 2's on patches pixel by pixel, (E, 3 * patch * patch) channel by channel."""
    if weight.ndim == 2 and weight.shape[1] == 3 * patch**2:
        weight = weight.unflatten(1, (patch, patch, 3)).permute(0, 3, 1, 2)
    return weight.flatten(1)
