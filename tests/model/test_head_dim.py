"""A head width of its own: the same function everywhere, and a config that cannot be is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles.passes import logits
from tests.oracles.tiny import tiny_config, tiny_model, tiny_space
from unimodal.model.cache import KVCache
from unimodal.model.checkpoint import open_model, save_model
from unimodal.model.config import FlowConfig, ModelConfig, TransformerConfig
from unimodal.model.inference.matvec import matvec
from unimodal.model.inference.prepacked import prepacked

SHAPES: dict[str, dict[str, Any]] = {
    "wider": {"head_dim": 12},
    "narrower": {"head_dim": 4, "num_heads": 2, "num_kv_heads": 2},
    "heads do not divide dim": {"dim": 18, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6},
    "mixture": {"head_dim": 12, "mixture": True},
}


@pytest.fixture(params=SHAPES.values(), ids=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def test_the_projections_have_the_width_of_the_heads(shape: dict[str, Any]) -> None:
    model = tiny_model(**shape)
    trunk = model.config.trunk
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    (q_proj,) = {size for name, size in shapes.items() if name.endswith("q_proj.weight")}
    (v_proj,) = {size for name, size in shapes.items() if name.endswith("v_proj.weight")}
    (o_proj,) = {size for name, size in shapes.items() if name.endswith("o_proj.weight")}
    assert trunk.head_dim == shape["head_dim"] != trunk.dim / trunk.num_heads
    assert q_proj == (trunk.num_heads * trunk.head_dim, trunk.dim) and o_proj == q_proj[::-1]
    assert v_proj == (trunk.num_kv_heads * trunk.head_dim, trunk.dim)


@torch.no_grad()
def test_logits_with_a_cache_equal_those_without(shape: dict[str, Any]) -> None:
    model, tokens = tiny_model(**shape), torch.randint(24, (3, 12))
    cache = KVCache(model.config.trunk, 3, 12, torch.float64)
    assert cache.layers[0].keys.shape == (3, model.config.trunk.num_kv_heads, 12, shape["head_dim"])
    found = []
    for start, stop in ((0, 7), (7, 8), (8, 12)):
        cache.reserve(stop)
        positions = torch.arange(start, stop).expand(3, -1)
        found.append(logits(model, tokens[:, start:stop], positions, cache=cache))
    torch.testing.assert_close(torch.cat(found, dim=1), logits(model, tokens), rtol=1e-12, atol=1e-12)


@torch.inference_mode()
def test_forms_for_inference_compute_the_same(shape: dict[str, Any]) -> None:
    model, tokens = tiny_model(dtype=torch.float32, **shape), torch.randint(24, (3, 12))
    expected = logits(model, tokens)
    for fast in (prepacked(model), matvec(model)):
        torch.testing.assert_close(logits(fast, tokens), expected, rtol=1e-4, atol=1e-4)


def test_a_bundle_keeps_the_width(shape: dict[str, Any], tmp_path: Path) -> None:
    model, tokens = tiny_model(**shape), torch.randint(24, (1, 9))
    save_model(model, tiny_space(), tmp_path)
    opened, _ = open_model(tmp_path)
    assert opened.config == model.config and opened.config.trunk.head_dim == shape["head_dim"]
    with torch.no_grad():
        assert torch.equal(logits(opened, tokens), logits(model, tokens))


def test_without_a_width_of_its_own_a_head_has_its_share_of_the_model() -> None:
    assert tiny_config(dim=24, num_heads=4).trunk.head_dim == 6
    assert tiny_config(dim=24, num_heads=4) == tiny_config(dim=24, num_heads=4, head_dim=6)
    assert ModelConfig.from_dict({"vocab_size": 24, "trunk": {"dim": 24, "num_heads": 4}}).trunk.head_dim == 6
    assert replace(tiny_config().trunk, dim=24, head_dim=0).head_dim == 12


FLOW = FlowConfig(latent_dim=3, grid_size=2, time_channels=8, axial_rope_max=1.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dim": 18, "num_heads": 4}, "heads must divide dim where head_dim is not set"),
        ({"head_dim": 5}, "an even head width, got 5"),
        ({"head_dim": -2}, "an even head width, got -2"),
        ({"head_dim": 6, "flow": FLOW}, "axial RoPE needs a head width that 4 divides, got 6"),
        ({"dim": 18, "head_dim": 8, "flow": replace(FLOW, axial_rope_max=0.0)}, "a width that 4 divides, got 18"),
    ],
)
def test_a_width_that_cannot_be_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        tiny_config(**changes)
    assert "\n" not in str(error.value)


def test_heads_that_do_not_divide_the_width_are_named_with_the_config() -> None:
    with pytest.raises(ValueError, match="TransformerConfig"):
        TransformerConfig(dim=10, num_heads=4)
