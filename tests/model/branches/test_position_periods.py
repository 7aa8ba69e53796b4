"""The longest period of positions in an image is the config's, for latents and for patches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles.passes import media_at, on_table
from tests.oracles.tiny import tiny_model
from tokenizers_vq.media import PatchSpec
from unimodal.model.config import FlowConfig, VisionConfig
from unimodal.model.model import LATENTS, PATCHES

STANDING = torch.ones(1, 4, dtype=torch.bool)
FLOW = FlowConfig(latent_dim=3, grid_size=2, time_channels=8)
VISION = VisionConfig(
    patches=PatchSpec(size=4, max_patches=16, max_side=8), grid_size=4, dim=8, num_layers=1, num_heads=2, hidden_dim=12
)
KINDS: dict[str, tuple[Any, str, Tensor]] = {
    "latents": (FLOW, LATENTS, torch.ones(4, 3, dtype=torch.float64)),
    "patches": (VISION, PATCHES, torch.ones(4, 48, dtype=torch.uint8)),
}


@pytest.mark.parametrize(("config", "name", "values"), KINDS.values(), ids=list(KINDS))
def test_positions_of_an_image_have_the_period_of_the_config(config: Any, name: str, values: Tensor) -> None:
    """Tokens of one value differ by their positions alone, the more the shorter the longest period is."""

    def spread(period: float) -> float:
        branch = {"flow" if name == LATENTS else "vision": replace(config, pos_embed_period=period)}
        found = tiny_model(**branch).branches[name](media_at(STANDING, values, on_table(torch.arange(4), 2)))
        return float((found.embeddings[1:] - found.embeddings[0]).norm())

    near, far, default = spread(10.0), spread(1e6), spread(config.pos_embed_period)
    assert near > 1.05 * default > default > far
