"""Operations of training, counted by hand on a tiny model."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from tests.oracles.tiny import tiny_config
from tokenizers_vq.media import PatchSpec
from unimodal.model.branches.base import Expert
from unimodal.model.config import FlowConfig, VisionConfig
from unimodal.model.flops import active_parameters, flops_per_token
from unimodal.model.model import UnifiedModel

FLOW = FlowConfig(latent_dim=3, grid_size=2, time_channels=8)
VISION = VisionConfig(patches=PatchSpec(size=2, max_patches=9, max_side=3), grid_size=2, dim=8, num_layers=1)

LAYER = 256 + 128 + 128 + 256 + 3 * 16 * 24 + 32 + 16 + 2 * 16
"""Queries 16 -> 2 x 8, keys and values 16 -> 8, output, SwiGLU of 24, QK-norms of 2 and 1 heads, two norms: 2,000."""
TRUNK = 2 * LAYER + 16
"""Two layers and the last norm."""
HEAD = 24 * 16
FLOW_PARTS = (3 * 16 + 16) + (8 * 16 + 16) + (16 * 16 + 16) + (16 * 3 + 3)
"""Latents, times, times again, velocities: 531."""

UNDERSTANDING, GENERATION = TRUNK + HEAD, TRUNK + FLOW_PARTS


def model(**changes: Any) -> UnifiedModel:
    return UnifiedModel(tiny_config(**changes))


def test_the_numbers_by_hand() -> None:
    assert (LAYER, TRUNK, UNDERSTANDING, GENERATION) == (2000, 4016, 4400, 4547)
    assert sum(parameter.numel() for parameter in model().parameters()) == UNDERSTANDING + HEAD, "and the embedding"


@pytest.mark.parametrize("mixture", [False, True])
def test_a_token_passes_one_expert_and_its_own_head(mixture: bool) -> None:
    whole = model(mixture=mixture, flow=FLOW, vision=VISION)
    assert active_parameters(whole) == active_parameters(model()) == UNDERSTANDING
    assert active_parameters(whole, "generation") == GENERATION


def test_a_second_expert_adds_parameters_and_no_operations() -> None:
    dense, mixture = model(flow=FLOW), model(flow=FLOW, mixture=True)
    own = [sum(parameter.numel() for parameter in each.parameters()) for each in (dense, mixture)]
    assert own[1] - own[0] == TRUNK
    for expert in get_args(Expert):
        assert flops_per_token(mixture, 10, expert) == flops_per_token(dense, 10, expert)


def test_operations_of_a_token_are_six_for_each_parameter_and_attention() -> None:
    attention = 12 * 2 * 2 * 8 * 10
    assert flops_per_token(model(), 10) == 6 * UNDERSTANDING + attention == 30_240
    assert flops_per_token(model(flow=FLOW), 10, "generation") == 6 * GENERATION + attention == 31_122


def test_a_tied_head_is_multiplied_with_all_the_same() -> None:
    tied = model(tied_head=True, mixture=True, flow=FLOW)
    assert active_parameters(tied) == UNDERSTANDING
    assert active_parameters(tied, "generation") == GENERATION
    parameters = sum(parameter.numel() for parameter in model(tied_head=True).parameters())
    assert parameters == UNDERSTANDING, "one table for both"


def test_attention_is_counted_by_the_heads_and_their_own_width() -> None:
    wide = model(head_dim=12)
    layer = LAYER + 4 * (16 * (2 + 1 + 1 + 2)) + 4 * 2 * (2 + 1)
    assert active_parameters(wide) == 2 * layer + 16 + HEAD
    assert flops_per_token(wide, 10) == 6 * (2 * layer + 16 + HEAD) + 12 * 2 * 2 * 12 * 10
