"""What shards and configs of earlier versions called things, and what that is called now.

Pure functions of plain dicts: a config or a manifest is upgraded before anything is built from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers_vq.media import LATENTS, PATCHES
from tokenizers_vq.renaming import renamed

MANIFEST_KEYS = {"left_out": "skipped"}
"""Also of the parts of an interrupted job."""
AUTOENCODER_KEYS = {"latent_dim": "width", "hash": "source"}
PATCH_KEYS = {"patch": "size", "most": "max_patches", "longest": "max_side"}
MEMBERS = {"pixels": PATCHES}
"""`KEY.pixels.npy` held whole images, which are cut into patches when they are read."""
TEMPLATE_KEYS = {"vit_patch": "patch_size"}
DATA_KEYS = {"most_patches": "max_patches"}


def upgrade_manifest(values: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest of format version 1, with `autoencoder` and `patches`, as one with `media`.

    The version stays 1, because it also says how the shards are stored. Raises KeyError where a value is missing.
    """
    upgraded = renamed(values, MANIFEST_KEYS)
    media: dict[str, Any] = {}
    if autoencoder := upgraded.pop("autoencoder", None):
        known = renamed(autoencoder, AUTOENCODER_KEYS)
        sizing = {name: known[name] for name in ("reduction", "image_size")}
        media[LATENTS] = {"name": LATENTS, "width": known["width"], "sizing": sizing, "source": known["source"]}
    if patches := upgraded.pop(PATCHES, None):
        sizing = renamed(patches, PATCH_KEYS)
        media[PATCHES] = {"name": PATCHES, "width": 3 * sizing["size"] ** 2, "sizing": sizing}
    return {**upgraded, "media": media}


def upgrade_templates(values: Mapping[str, Any]) -> dict[str, Any]:
    """The `templates` of a config: `latents: {..., vit_patch: 8}` as `drawn`, `seen`, `patch_size` and `latents`.

    Formerly `latents` alone switched the flow branch on, so without `seen` and `drawn` they still do.
    """
    upgraded = dict(values)
    if "seen" in upgraded or "drawn" in upgraded or "latents" not in upgraded:
        return upgraded
    latents = upgraded.pop("latents")
    if not isinstance(latents, Mapping):
        return upgraded
    known = renamed(latents, TEMPLATE_KEYS)
    patch_size = known.pop("patch_size", None)
    upgraded |= {"drawn": LATENTS, "latents": known} if known else {"drawn": LATENTS}
    return upgraded | ({"seen": PATCHES, "patch_size": patch_size} if patch_size else {})


def upgrade_data_config(values: Any) -> Any:
    """A whole config of `train.py`, under a command's name or not; what is not a config is given back as it is."""
    if not isinstance(values, Mapping):
        return values
    upgraded = {name: upgrade_data_config(value) if name in SUBCOMMANDS else value for name, value in values.items()}
    if isinstance(upgraded.get("data"), Mapping):
        upgraded["data"] = _upgrade_data(upgraded["data"])
    return upgraded


SUBCOMMANDS = ("fit", "validate", "test", "predict")


def _upgrade_data(values: Mapping[str, Any]) -> dict[str, Any]:
    upgraded = dict(values)
    if isinstance(upgraded.get("init_args"), Mapping):
        upgraded["init_args"] = renamed(upgraded["init_args"], DATA_KEYS)
        if isinstance(templates := upgraded["init_args"].get("templates"), Mapping):
            upgraded["init_args"]["templates"] = upgrade_templates(templates)
    return upgraded
