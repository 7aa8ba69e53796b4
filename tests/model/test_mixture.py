"""Mixture-of-transformers: copied, it is the dense model; trained, each expert has its own weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.passes import logits, media_at, on_table, velocity
from tests.oracles.tiny import tiny_config, tiny_model
from unimodal.model.branches.base import MediaTokens
from unimodal.model.config import FlowConfig
from unimodal.model.context import Route
from unimodal.model.masks import dense_mask
from unimodal.model.mixture import from_dense, is_understanding, merge_experts, split_by_expert
from unimodal.model.model import LATENTS, UnifiedModel

ROWS, LENGTH, CHANNELS = 3, 11, 4
FLOW = FlowConfig(latent_dim=CHANNELS, grid_size=4, time_channels=8)


def latents_at(standing: Tensor, seed: int = 0) -> MediaTokens:
    """Random latents, times and positions for the tokens that stand there."""
    generator = torch.Generator().manual_seed(seed)
    count = int(standing.sum())
    latents = torch.randn(count, CHANNELS, generator=generator, dtype=torch.float64)
    times = torch.rand(count, generator=generator, dtype=torch.float64)
    places = torch.randint(16, (count,), generator=generator)
    return media_at(standing, latents, on_table(places, FLOW.grid_size), times)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("shape", [{}, {"qk_norm": None, "qkv_bias": True}])
def test_copied_from_a_dense_model_it_is_that_model_whatever_is_a_latent(share: float, shape: dict) -> None:
    dense = tiny_model(flow=FLOW, **shape)
    mixture = UnifiedModel(tiny_config(flow=FLOW, mixture=True, **shape)).double()
    mixture.load_state_dict(from_dense(dense.state_dict()))
    tokens = torch.randint(24, (ROWS, LENGTH))
    documents = torch.tensor([[0] * 6 + [1] * 5]).expand(ROWS, -1)
    spans = torch.tensor([[0, 1, 1, 1, 0, 0, 0, -2, -2, -2, 0]]).expand(ROWS, -1)
    mask = dense_mask(documents, None, spans)
    for seed in range(5):
        standing = torch.rand(ROWS, LENGTH, generator=torch.Generator().manual_seed(seed)) < share
        media = {LATENTS: latents_at(standing, seed)}
        found, expected = (model(tokens, mask=mask, media=media) for model in (mixture, dense))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_without_latents_only_the_understanding_expert_computes() -> None:
    mixture = tiny_model(flow=FLOW, mixture=True)
    tokens = torch.randint(24, (ROWS, LENGTH))
    before = logits(mixture, tokens)
    with torch.no_grad():
        for name, parameter in mixture.named_parameters():
            if ".generation." in name or name.startswith(("branches.latents.", "heads.velocity.")):
                parameter.add_(1)
    assert torch.equal(logits(mixture, tokens), before)
    nothing = {LATENTS: latents_at(torch.zeros(ROWS, LENGTH, dtype=torch.bool))}
    torch.testing.assert_close(logits(mixture, tokens, media=nothing), before, rtol=0, atol=1e-12)


def test_split_and_merge_are_inverse_and_keep_the_order() -> None:
    x = torch.randn(ROWS, LENGTH, 5)
    standing = torch.rand(ROWS, LENGTH) < 0.4
    route = Route.of(standing.flatten().nonzero().squeeze(1), standing.numel())
    understanding, generation = split_by_expert(x, route)
    assert torch.equal(understanding, x[~standing]) and torch.equal(generation, x[standing])
    assert torch.equal(merge_experts((understanding, generation), route, x.shape[:2]), x)


def test_every_generation_parameter_gets_a_gradient_and_frozen_understanding_none() -> None:
    mixture = tiny_model(flow=FLOW, mixture=True).train()
    for name, parameter in mixture.named_parameters():
        parameter.requires_grad_(not is_understanding(name))
    standing = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    standing[:, 4:8] = True
    media = latents_at(standing)
    features = mixture(torch.randint(24, (ROWS, LENGTH)), media={LATENTS: media})
    found = velocity(mixture, features, media)
    (found * torch.randn_like(found)).sum().backward()
    for name, parameter in mixture.named_parameters():
        if is_understanding(name):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_mixture_of_swin_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="norm_placement 'pre'"):
        tiny_config(mixture=True, norm_placement="swin")


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_route_sorts_tokens_by_expert_and_keeps_their_order(share: float) -> None:
    standing = torch.rand(ROWS, LENGTH) < share
    generation = standing.flatten().nonzero().squeeze(1)
    route = Route.of(generation, standing.numel())
    others = (~standing).flatten().nonzero().squeeze(1)
    assert torch.equal(route.order, torch.cat([others, generation])) and torch.equal(route.generation, generation)
    assert torch.equal(route.order[route.inverse], torch.arange(standing.numel()))
    assert route.num_understanding == len(others)
