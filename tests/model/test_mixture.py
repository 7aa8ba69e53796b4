"""Mixture-of-transformers: copied, it is the dense model; trained, each side has its own weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.tiny import tiny_config, tiny_model
from unimodal.model.config import FlowConfig
from unimodal.model.branches.flow import LatentTokens, latent_tokens
from unimodal.model.masks import dense_mask
from unimodal.model.mixture import freeze, from_dense, is_understanding, merge, split
from unimodal.model.model import UnifiedModel

ROWS, LENGTH, CHANNELS = 3, 11, 4
FLOW = FlowConfig(latent_dim=CHANNELS, side=4, time_channels=8)


def media_at(standing: Tensor, seed: int = 0) -> LatentTokens:
    """Random latents, times and places for the tokens that stand there."""
    generator = torch.Generator().manual_seed(seed)
    count = int(standing.sum())
    latents = torch.randn(count, CHANNELS, generator=generator, dtype=torch.float64)
    times = torch.rand(count, generator=generator, dtype=torch.float64)
    return latent_tokens(standing, latents, times, torch.randint(16, (count,), generator=generator))


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
        found, expected = (
            model(tokens, mask=mask, media=media_at(standing, seed)) for model in (mixture, dense)
        )
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_without_latents_only_the_understanding_side_is_asked() -> None:
    mixture = tiny_model(flow=FLOW, mixture=True)
    tokens = torch.randint(24, (ROWS, LENGTH))
    before = mixture(tokens)
    with torch.no_grad():
        for name, parameter in mixture.named_parameters():
            if ".generation." in name or name.startswith("flow."):
                parameter.add_(1)
    assert torch.equal(mixture(tokens), before)
    nothing = media_at(torch.zeros(ROWS, LENGTH, dtype=torch.bool))
    torch.testing.assert_close(mixture.head(mixture.features(tokens, media=nothing)), before, rtol=0, atol=1e-12)


def test_split_and_merge_are_inverse_and_keep_the_places() -> None:
    x = torch.randn(ROWS, LENGTH, 5)
    standing = torch.rand(ROWS, LENGTH) < 0.4
    media = media_at(standing)
    others, latents = split(x, media)
    assert torch.equal(others, x[~standing]) and torch.equal(latents, x[standing])
    assert torch.equal(merge((others, latents), media, x.shape[:2]), x)


def test_every_generation_parameter_gets_a_gradient_and_frozen_understanding_none() -> None:
    mixture = tiny_model(flow=FLOW, mixture=True).train()
    freeze(mixture, is_understanding)
    standing = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    standing[:, 4:8] = True
    media = media_at(standing)
    features = mixture.features(torch.randint(24, (ROWS, LENGTH)), media=media)
    assert mixture.flow is not None
    velocity = mixture.flow.velocity(features.flatten(0, 1)[media.index])
    (velocity * torch.randn_like(velocity)).sum().backward()
    for name, parameter in mixture.named_parameters():
        if is_understanding(name):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_mixture_of_swin_blocks_and_latents_without_a_branch_are_refused() -> None:
    with pytest.raises(ValueError, match="norm_placement 'pre'"):
        tiny_config(mixture=True, norm_placement="swin")
    plain = tiny_model()
    with pytest.raises(ValueError, match="no flow branch"):
        plain.features(torch.zeros(1, 2, dtype=torch.int64), media=media_at(torch.tensor([[False, True]])))
