"""Names of earlier versions: bundles and checkpoints that were written with them still open.

Earlier versions kept everything in one flat config and one module, whose parameters had no prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from tokenizers_vq.renaming import renamed

Value = TypeVar("Value")

STATE_NAMES: tuple[tuple[str, str], ...] = (
    (r"^(embedding|blocks|norm)\.", r"trunk.\1."),
    (r"^head\.", "heads.tokens."),
    (r"^flow\.velocity_out\.", "heads.velocity."),
    (r"^flow\.", "branches.latents."),
    (r"^vision\.connector_in\.", "branches.patches.connector.in_proj."),
    (r"^vision\.connector_out\.", "branches.patches.connector.out_proj."),
    (r"^vision\.", "branches.patches.encoder."),
    (r"^(trunk\..*\.attention)\.([qkv]_(?:proj|norm))\.", r"\1.qkv.\2."),
)
"""Applied in this order: an old parameter's name -> today's."""

FLOW_NAMES = {"side": "grid_size", "place_period": "pos_embed_period", "axial_turn": "axial_rope_max"}
VISION_NAMES = {"side": "grid_size", "width": "dim", "place_period": "pos_embed_period"}
PATCH_NAMES = {"patch": "size", "most": "max_patches", "longest": "max_side"}
BRANCHES = ("vocab_size", "flow", "vision")


def upgrade_state(state: Mapping[str, Value]) -> dict[str, Value]:
    """Parameters by their old names, or by today's, -> by today's."""
    return {state_name(name): value for name, value in state.items()}


def state_name(name: str) -> str:
    """An old parameter's name -> today's; today's stays as it is."""
    for pattern, new in STATE_NAMES:
        name = re.sub(pattern, new, name)
    return name


def upgrade_model_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config in the old form, or in today's, -> in today's. Raises ValueError for what is no object."""
    if not isinstance(values, Mapping):
        raise ValueError(f"not a model config: it is an object with fields, got {str(values)[:80]!r}")
    if "trunk" in values or "vocab_size" not in values:
        return dict(values)
    trunk = {name: value for name, value in values.items() if name not in BRANCHES}
    if "rope_theta" in trunk:
        trunk["rope"] = {"theta": trunk.pop("rope_theta")}
    flow, vision = values.get("flow"), values.get("vision")
    return {
        "vocab_size": values["vocab_size"],
        "trunk": trunk,
        "flow": renamed(flow, FLOW_NAMES) if flow else None,
        "vision": _vision(vision) if vision else None,
    }


def _vision(values: Mapping[str, Any]) -> dict[str, Any]:
    patches = {new: values[old] for old, new in PATCH_NAMES.items() if old in values}
    rest = {name: value for name, value in values.items() if name not in PATCH_NAMES}
    return {"patches": patches, **renamed(rest, VISION_NAMES)}
