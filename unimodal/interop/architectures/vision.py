"""Whose ViT a local folder holds: SigLIP's or MoonViT."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers_vq.media import PatchSpec
from unimodal.interop.architectures.moonvit import is_moonvit, load_moonvit, moonvit_config, moonvit_sizes
from unimodal.interop.architectures.siglip import load_siglip, siglip_config
from unimodal.model.branches.vision.branch import VisionBranch
from unimodal.model.checkpoint import CONFIG_FILE
from unimodal.model.config import ConnectorKind, VisionConfig


def vit_config(folder: Path, spec: PatchSpec, merge: int = 1, connector: ConnectorKind = "mlp") -> VisionConfig:
    """The config of a folder's ViT for the data's patches, of which a SigLIP's token covers `merge` x `merge`.

    Raises ValueError where the folder holds none, or one with patches of another size.
    """
    if is_moonvit(values := _values(folder)):
        patch, merge = moonvit_sizes(values, whole=bool(spec.tokens))
    else:
        found = siglip_config(folder, max_patches=spec.max_patches, max_side=spec.max_side)
        patch = found.patches.size
    if patch * merge != spec.size:
        several = f", {merge} along a side of a token" if merge > 1 else ""
        raise ValueError(f"{folder} takes patches of {patch} pixels{several}, the data has {spec.size}")
    if is_moonvit(values):
        return moonvit_config(folder, values, spec, connector)
    return replace(found, patches=spec, merge=merge, connector=connector)


def load_vit(branch: VisionBranch, folder: Path) -> set[str]:
    """Fill a branch of `vit_config`'s shape; the names within it that were set."""
    if is_moonvit(_values(folder)):
        return load_moonvit(branch, folder)
    load_siglip(branch.encoder, folder)
    return {f"encoder.{name}" for name in branch.encoder.state_dict()}


def _values(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} does not hold a SigLIP model, nor MoonViT: {error}") from error
    return values if isinstance(values, dict) else {}
