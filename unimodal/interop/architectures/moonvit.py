"""MoonViT, from a local folder of Kimi-VL or of its vision tower alone, as the ViT of a model here.

Names and sizes are those of the public checkpoints (moonshotai/MoonViT-SO-400M, Kimi-VL-A3B). The projector is taken
along where the folder has one and the model's connector is `pixel_shuffle` of the same width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizers_vq.media import PatchSpec
from unimodal.interop.weights import read_weights
from unimodal.model.branches.vision.branch import VisionBranch
from unimodal.model.branches.vision.connectors import PixelShuffleConnector
from unimodal.model.config import ConnectorKind, VisionConfig
from unimodal.model.sharded import write_rows

LAYER = {"attention_norm": "norm0", "mlp_norm": "norm1", "o_proj": "wo", "up_proj": "mlp.fc0", "down_proj": "mlp.fc1"}
"""Ours -> theirs, of a layer; queries, keys and values are one matrix there."""
TOWER, PROJECTOR = ("vision_tower.", ""), "multi_modal_projector."
CONNECTOR = {"norm": "pre_norm", "in_proj": "linear_1", "out_proj": "linear_2"}
MOONVIT_DEFAULTS = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "init_pos_emb_height": 64,
    "init_pos_emb_width": 64,
    "merge_kernel_size": [2, 2],
}
"""Of the public configuration, which configs may leave out."""
MOONVIT_EPS = 1e-5
"""Of its norms, which no config states."""


def is_moonvit(values: dict[str, Any]) -> bool:
    """Whether a config.json is of MoonViT, or of a model that sees through it."""
    vision = values.get("vision_config", values)
    return "moonvit" in str(vision.get("model_type", "")) or "kimi_vl" in str(values.get("model_type", ""))


def moonvit_sizes(values: dict[str, Any], *, whole: bool) -> tuple[int, int]:
    """Pixels along a side of its patches, and patches along a side of a token; 1 where `whole` images are resampled."""
    vision: dict[str, Any] = MOONVIT_DEFAULTS | values.get("vision_config", values)
    return vision["patch_size"], 1 if whole else vision["merge_kernel_size"][0]


def moonvit_config(folder: Path, values: dict[str, Any], spec: PatchSpec, connector: ConnectorKind) -> VisionConfig:
    """The config of a folder's ViT. Raises ValueError where it is none that ours can be."""
    vision: dict[str, Any] = MOONVIT_DEFAULTS | values.get("vision_config", values)
    height, width = vision["init_pos_emb_height"], vision["init_pos_emb_width"]
    merge = vision["merge_kernel_size"]
    if height != width or merge[0] != merge[1]:
        raise ValueError(f"{folder}: its table of {height}x{width} positions and its merge {merge} have to be square")
    return VisionConfig(
        patches=spec,
        grid_size=height,
        dim=vision["hidden_size"],
        num_layers=vision["num_hidden_layers"],
        num_heads=vision["num_attention_heads"],
        hidden_dim=vision["intermediate_size"],
        norm_eps=MOONVIT_EPS,
        encoder="moonvit",
        merge=moonvit_sizes(values, whole=bool(spec.tokens))[1],
        connector=connector,
    )


@torch.no_grad()
def load_moonvit(branch: VisionBranch, folder: Path) -> set[str]:
    """Fill a branch of `moonvit_config`'s shape; the names that were set.

    Raises ValueError for a weight that is missing or of another shape.
    """
    stored, weights = read_weights(folder), dict(branch.named_parameters())
    found = {f"encoder.{name}": x for name, x in _tower(stored, branch.config, folder).items()}
    if isinstance(branch.connector, PixelShuffleConnector) and f"{PROJECTOR}linear_2.weight" in stored:
        for ours, theirs in CONNECTOR.items():
            for kind in ("weight", "bias"):
                found[f"connector.{ours}.{kind}"] = stored[f"{PROJECTOR}{theirs}.{kind}"]
    for name, tensor in found.items():
        if tensor.shape != weights[name].shape:
            raise ValueError(
                f"{folder}: {name} has shape {tuple(tensor.shape)}, {tuple(weights[name].shape)} is needed"
            )
        write_rows(weights[name], tensor)
    return set(found)


def _tower(stored: dict[str, Tensor], config: VisionConfig, folder: Path) -> dict[str, Tensor]:
    """The weights of the encoder under our names."""

    def take(name: str) -> Tensor:
        for prefix in TOWER:
            if prefix + name in stored:
                return stored[prefix + name]
        raise ValueError(f"{folder} lacks {name}: it is no MoonViT, or not a whole one")

    found = {
        "patch_embedding.weight": take("patch_embed.proj.weight").flatten(1),
        "patch_embedding.bias": take("patch_embed.proj.bias"),
        "position_embedding": take("patch_embed.pos_emb.weight").flatten(0, 1),
    }
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = take(f"encoder.final_layernorm.{kind}")
        for layer in range(config.num_layers):
            for ours, theirs in LAYER.items():
                found[f"blocks.{layer}.{ours}.{kind}"] = take(f"encoder.blocks.{layer}.{theirs}.{kind}")
            joined = take(f"encoder.blocks.{layer}.wqkv.{kind}").chunk(3)
            for name, part in zip("qkv", joined, strict=True):
                found[f"blocks.{layer}.{name}_proj.{kind}"] = part
    return found
