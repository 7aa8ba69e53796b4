"""The eps of a config is that of every norm: with a huge one, each of them shrinks what goes through it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.oracles.tiny import tiny_flow_pipeline, tiny_model
from unimodal.model.config import QKNormConfig
from unimodal.model.model import UnifiedModel

EPS, QK_EPS = 0.125, 0.25


def eps_of_norms(model: UnifiedModel) -> dict[str, float]:
    """By the name of the module."""
    return {name: float(getattr(module, "eps")) for name, module in model.named_modules() if hasattr(module, "eps")}  # noqa: B009


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("shape", [{}, {"norm_placement": "swin"}, {"mixture": True}], ids=str)
def test_every_norm_of_the_trunk_has_the_eps_of_its_config(shape: dict[str, Any], kind: Any) -> None:
    model = tiny_model(norm_eps=EPS, qk_norm=QKNormConfig(eps=QK_EPS, kind=kind), **shape)
    found = eps_of_norms(model)
    assert len(found) >= 2 * 4 + 1
    for name, eps in found.items():
        assert eps == (QK_EPS if name.endswith(("q_norm", "k_norm")) else EPS), name


def test_every_norm_of_the_vit_has_the_eps_of_its_config() -> None:
    model = tiny_flow_pipeline(vit=True).model
    assert model.config.vision is not None
    found = {name: eps for name, eps in eps_of_norms(model).items() if name.startswith("branches.")}
    assert len(found) == 3 and set(found.values()) == {model.config.vision.norm_eps}
