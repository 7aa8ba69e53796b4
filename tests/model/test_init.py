"""First weights: every parameter gets one, and projections into a residual stream start smaller by its own depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.oracles.passes import flow_branch, vision_branch
from tests.oracles.tiny import tiny_config
from tokenizers_vq.media import PatchSpec
from unimodal.model.branches.vision.connectors import MLPConnector
from unimodal.model.config import INIT_STD, FlowConfig, QKNormConfig, VisionConfig
from unimodal.model.model import VELOCITY, UnifiedModel

FLOW = FlowConfig(latent_dim=3, grid_size=2, time_channels=8)
VISION = VisionConfig(
    patches=PatchSpec(size=2, max_patches=9, max_side=3), grid_size=2, dim=64, num_layers=2, hidden_dim=256
)
KINDS: dict[str, dict[str, Any]] = {
    "discrete": {},
    "swin": {"norm_placement": "swin"},
    "RMS QK-norm and biases": {"qk_norm": QKNormConfig(kind="rms"), "qkv_bias": True},
    "tied": {"tied_head": True},
    "dense with branches": {"flow": FLOW, "vision": VISION},
    "mixture with branches": {"mixture": True, "qkv_bias": True, "flow": FLOW, "vision": VISION},
}


def tensors(model: UnifiedModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters and tables."""
    yield from model.named_parameters()
    yield from model.named_buffers()


@torch.no_grad()
def forget(model: UnifiedModel) -> None:
    for _, tensor in tensors(model):
        tensor.fill_(float("nan"))


def not_finite(model: UnifiedModel) -> list[str]:
    return [name for name, tensor in tensors(model) if not tensor.isfinite().all()]


@pytest.mark.parametrize("changes", KINDS.values(), ids=list(KINDS))
def test_every_parameter_and_table_is_set_whatever_was_in_it(changes: dict[str, Any]) -> None:
    model = UnifiedModel(tiny_config(**changes))
    forget(model)
    assert not_finite(model) == [name for name, _ in tensors(model)]
    model.init_weights()
    assert not_finite(model) == []


@pytest.mark.parametrize("changes", KINDS.values(), ids=list(KINDS))
def test_a_model_built_without_storage_becomes_whole(changes: dict[str, Any]) -> None:
    config = tiny_config(**changes)
    with torch.device("meta"):
        model = UnifiedModel(config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    model.to_empty(device="cpu")
    forget(model)
    model.init_weights()
    assert not_finite(model) == []
    torch.manual_seed(3)
    model.init_weights()
    other = UnifiedModel(config)
    torch.manual_seed(3)
    other.init_weights()
    expected = dict(tensors(other))
    assert {name for name, _ in tensors(model)} == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(model))
    assert (model.token_head.weight is model.trunk.embedding.weight) == config.trunk.tied_head


@pytest.mark.parametrize("trunk_layers", [1, 8])
def test_a_vits_projections_into_its_residual_stream_start_smaller_by_its_own_depth(trunk_layers: int) -> None:
    model = UnifiedModel(tiny_config(dim=64, hidden_dim=128, num_layers=trunk_layers, vision=VISION))
    encoder = vision_branch(model).encoder
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear):
            into_residual = name.endswith(("o_proj", "down_proj"))
            expected = INIT_STD / (2 * VISION.num_layers) ** 0.5 if into_residual else INIT_STD
            assert module.weight.std().item() == pytest.approx(expected, rel=0.06), name
            assert not module.bias.any(), name
    into_trunk = [module for name, module in model.trunk.named_modules() if name.endswith(("o_proj", "down_proj"))]
    assert len(into_trunk) == 2 * trunk_layers
    for module in into_trunk:
        expected = INIT_STD / (2 * trunk_layers) ** 0.5
        assert module.get_parameter("weight").std().item() == pytest.approx(expected, rel=0.06)


def test_norms_start_as_nothing_biases_at_zero_and_matrices_with_the_same_size() -> None:
    config = tiny_config(dim=64, hidden_dim=128, num_layers=1, qkv_bias=True, mixture=True, flow=FLOW, vision=VISION)
    model = UnifiedModel(config)
    own_sizes = ("o_proj.weight", "down_proj.weight", "latent_in.weight", "heads.velocity.weight")
    own_sizes += ("connector.in_proj.weight", "connector.out_proj.weight")
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        elif not name.endswith(own_sizes):
            assert parameter.std().item() == pytest.approx(INIT_STD, rel=0.15), name
    assert not any(parameter.any() for parameter in model.heads[VELOCITY].parameters())


def test_a_seen_patch_starts_of_the_size_of_its_position() -> None:
    """Or the decoder would be given positions and hardly any picture."""
    connector = vision_branch(
        UnifiedModel(tiny_config(dim=256, hidden_dim=8, vision=replace(VISION, dim=64)))
    ).connector
    assert isinstance(connector, MLPConnector)
    features = torch.randn(40, 64)
    seen = connector.out_proj(torch.nn.functional.gelu(connector.in_proj(features), approximate="tanh"))
    assert 0.5 < seen.std().item() / connector.positions.std().item() < 1.5


def test_an_embedded_latent_starts_of_the_size_of_its_position() -> None:
    flow = replace(FLOW, latent_dim=64)
    branch = flow_branch(UnifiedModel(tiny_config(dim=256, hidden_dim=8, flow=flow)))
    embedded = branch.latent_in(torch.randn(200, 64))
    assert embedded.std().item() == pytest.approx(0.5, rel=0.05)
    assert embedded.std().item() < branch.positions.std().item() * 2
