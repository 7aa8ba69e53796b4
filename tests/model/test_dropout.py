"""Dropout: after attention and after the feed-forward part, in training alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.oracles.tiny import tiny_model

PARTS = ("o_proj", "down_proj")
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
