"""Options of tiny runs with branches: images drawn as latents, images seen through a ViT."""

from __future__ import annotations

from typing import Any

NEXT_TOKEN = "unimodal.training.objectives.next_token.NextToken"
FLOW_MATCHING = "unimodal.training.objectives.flow_matching.FlowMatching"


def objectives(*, next_token: dict[str, Any] | None = None, flow: dict[str, Any] | None = None) -> dict[str, str]:
    """The option that names objectives, with these settings; without `flow` the next token alone."""
    kinds = [(NEXT_TOKEN, next_token or {}), *([(FLOW_MATCHING, flow)] if flow is not None else [])]
    listed = ", ".join(f"{{class_path: {kind}, init_args: {_mapping(settings)}}}" for kind, settings in kinds)
    return {"model__objectives": f"[{listed}]"}


def draws_latents(**matching: Any) -> dict[str, Any]:
    """A flow branch, and settings of its objective."""
    return {
        "model__flow": "{}",
        "data__templates__drawn": "latents",
        **objectives(flow={"weight": 0.5, **matching}),
    }


SEES_PATCHES: dict[str, Any] = {
    "model__vision": "{dim: 16, num_layers: 1, num_heads: 2, hidden_dim: 24}",
    "data__templates__seen": "patches",
}
"""A ViT of one layer."""


def _mapping(settings: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in settings.items()) + "}"
