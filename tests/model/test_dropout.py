"""Dropout: after attention and after the feed-forward part, in training alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.oracles.passes import media_at, on_table
from tests.oracles.tiny import tiny_model
from unimodal.model.config import FlowConfig
from unimodal.model.model import LATENTS

PARTS = ("o_proj", "down_proj")
EXPERTS = ("understanding", "generation")
TOKENS = torch.arange(16)[None]


def without(*parts: str, **settings: Any) -> Any:
    """A model in training whose attention or feed-forward parts give nothing."""
    model = tiny_model(dropout=0.5, **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(f".{part}." in name for part in parts):
                parameter.zero_()
    return model.train()


@pytest.mark.parametrize("norm_placement", ["pre", "swin"])
@pytest.mark.parametrize("silent", PARTS)
def test_dropout_acts_on_either_part_alone(silent: str, norm_placement: str) -> None:
    model = without(silent, norm_placement=norm_placement)
    assert not torch.equal(model(TOKENS), model(TOKENS))
    assert torch.equal(model.eval()(TOKENS), model(TOKENS))


@pytest.mark.parametrize("norm_placement", ["pre", "swin"])
def test_dropout_acts_on_nothing_else(norm_placement: str) -> None:
    model = without(*PARTS, norm_placement=norm_placement)
    assert torch.equal(model(TOKENS), model(TOKENS))


@pytest.mark.parametrize("expert", EXPERTS)
@pytest.mark.parametrize("part", PARTS)
def test_dropout_acts_on_either_part_of_either_expert(part: str, expert: str) -> None:
    """All other parts of a mixture give nothing."""
    silent = [f"{one}.{name}" for one in EXPERTS for name in ("attention.o_proj", "feed_forward.down_proj")]
    silent = [name for name in silent if not (name.startswith(expert) and name.endswith(part))]
    model = without(*silent, mixture=True, flow=FlowConfig(latent_dim=3, grid_size=2, time_channels=8))
    standing = (torch.arange(16) >= 12)[None]
    latents = torch.randn(4, 3, dtype=torch.float64)
    media = {LATENTS: media_at(standing, latents, on_table(torch.arange(4), 2), torch.rand(4).double())}
    one, other = (model(TOKENS, media=media) for _ in range(2))
    assert not torch.equal(one, other)
    evaluated = model.eval()(TOKENS, media=media)
    assert torch.equal(evaluated, model(TOKENS, media=media))
