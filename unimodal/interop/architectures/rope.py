"""Rotary positions in transformers' words and in ours."""

from __future__ import annotations

from typing import Any

from unimodal.model.config import RopeConfig, RopeScaling

SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_length": "original_max_position_embeddings",
}
"""Fields of RopeScaling -> theirs."""


def rope_parameters(whole: Any) -> dict[str, Any]:
    """Of a config that its class has completed: `rope_scaling` and `rope_theta` of older versions are in it."""
    return {"rope_type": "default", **(whole.rope_parameters or {})}


def rope_refusals(whole: Any) -> dict[str, bool]:
    """What our rotary positions cannot do -> whether the config asks for it."""
    rope = rope_parameters(whole)
    kind, share = rope["rope_type"], rope.get("partial_rotary_factor", 1)
    by_layer = any(isinstance(value, dict) for value in rope.values())
    return {
        "its layers rotate by different rope_parameters, ours all by the same": by_layer,
        f"its rotary positions are scaled ({kind}), ours as llama3 or not at all": kind not in ("default", "llama3"),
        f"it rotates a part of each head only ({share}), ours are rotated whole": share != 1,
    }


def our_rope(whole: Any) -> RopeConfig:
    """Raises ValueError for a scaling that makes no sense."""
    rope = rope_parameters(whole)
    scaling = None
    if rope["rope_type"] == "llama3":
        scaling = RopeScaling(**{ours: rope[theirs] for ours, theirs in SCALING.items()})
    return RopeConfig(theta=float(rope["rope_theta"]), scaling=scaling)


def their_rope(rope: RopeConfig) -> dict[str, Any]:
    """The inverse of `our_rope`, as `rope_parameters`."""
    if rope.scaling is None:
        return {"rope_type": "default", "rope_theta": rope.theta}
    scaling = {theirs: getattr(rope.scaling, ours) for ours, theirs in SCALING.items()}
    return {"rope_type": "llama3", "rope_theta": rope.theta, **scaling}
