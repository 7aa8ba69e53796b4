"""Old names: bundles that an earlier version wrote open with the same weights, and today's names stay as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.oracles.tiny import tiny_model, tiny_space
from tokenizers_vq.media import PatchSpec
from unimodal.model.checkpoint import open_model, save_model
from unimodal.model.config import FlowConfig, ModelConfig, QKNormConfig, RopeConfig, VisionConfig
from unimodal.model.model import UnifiedModel
from unimodal.model.old_names import (
    FLOW_NAMES,
    PATCH_NAMES,
    STATE_NAMES,
    VISION_NAMES,
    state_name,
    upgrade_model_config,
    upgrade_state,
)

SPACE = tiny_space()
FLOW = FlowConfig(
    latent_dim=3, grid_size=2, time_channels=8, pos_embed_period=50.0, axial_rope_max=1.5, autoencoder="a1"
)
VISION = VisionConfig(
    patches=PatchSpec(size=4, max_patches=16, max_side=8),
    grid_size=4,
    dim=8,
    num_layers=1,
    num_heads=2,
    hidden_dim=12,
    pos_embed_period=20.0,
)
KINDS: dict[str, dict[str, Any]] = {
    "discrete": {},
    "swin without QK-norm": {"norm_placement": "swin", "qk_norm": None},
    "RMS QK-norm": {"qk_norm": QKNormConfig(kind="rms", eps=1e-6), "dropout": 0.1},
    "flow": {"flow": FLOW},
    "all": {"rope": RopeConfig(theta=500.0), "qkv_bias": True, "mixture": True, "flow": FLOW, "vision": VISION},
}

OLD_FLOW = {
    "latent_dim": 3,
    "side": 2,
    "time_channels": 8,
    "place_period": 50.0,
    "axial_turn": 1.5,
    "autoencoder": "a1",
}
OLD_VISION = {
    "patch": 4,
    "most": 16,
    "longest": 8,
    "side": 4,
    "width": 8,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 12,
    "norm_eps": 1e-06,
    "place_period": 20.0,
}

BOTH = ("weight", "bias")
OLD_EXPERT = [
    *(f"attention.{part}_proj.{kind}" for part in "qkv" for kind in BOTH),
    "attention.o_proj.weight",
    *(f"attention.{part}_norm.{kind}" for part in "qk" for kind in BOTH),
    *(f"feed_forward.{part}_proj.weight" for part in ("gate", "up", "down")),
    "attention_norm.weight",
    "feed_forward_norm.weight",
]
OLD_ALL = [
    "embedding.weight",
    *(f"blocks.{n}.{side}.{name}" for n in (0, 1) for side in ("understanding", "generation") for name in OLD_EXPERT),
    "norm.understanding.weight",
    "norm.generation.weight",
    "head.weight",
    *(f"flow.{part}.{kind}" for part in ("latent_in", "time_in", "time_out", "velocity_out") for kind in BOTH),
    "vision.position_embedding",
    *(f"vision.{part}.{kind}" for part in ("patch_embedding", "norm") for kind in BOTH),
    *(f"vision.blocks.0.{part}_norm.{kind}" for part in ("attention", "mlp") for kind in BOTH),
    *(f"vision.blocks.0.{part}_proj.{kind}" for part in ("q", "k", "v", "o", "up", "down") for kind in BOTH),
    *(f"vision.connector_{part}.{kind}" for part in ("in", "out") for kind in BOTH),
]
"""What `state_dict` of the last version with old names holds for "all"."""


def old_name(name: str) -> str:
    """The inverse of `state_name`, by hand."""
    for new, old in (
        ("heads.tokens.", "head."),
        ("heads.velocity.", "flow.velocity_out."),
        ("branches.latents.", "flow."),
        ("branches.patches.connector.in_proj.", "vision.connector_in."),
        ("branches.patches.connector.out_proj.", "vision.connector_out."),
        ("branches.patches.encoder.", "vision."),
        ("trunk.", ""),
    ):
        if name.startswith(new):
            return old + name.removeprefix(new).replace(".attention.qkv.", ".attention.")
    raise AssertionError(name)


def old_config(model: UnifiedModel) -> dict[str, Any]:
    """One flat object, as the last version with old names wrote it."""
    trunk = model.config.to_dict()["trunk"]
    rope = trunk.pop("rope")
    del trunk["head_dim"], trunk["tied_head"]  # newer than that
    flow, vision = OLD_FLOW if model.config.flow else None, OLD_VISION if model.config.vision else None
    return {"vocab_size": SPACE.vocab_size, **trunk, "rope_theta": rope["theta"], "flow": flow, "vision": vision}


def write_old(model: UnifiedModel, folder: Path) -> None:
    """A bundle under old names."""
    save_model(model, SPACE, folder)
    tensors = {old_name(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(old_config(model)))


@pytest.mark.parametrize("changes", KINDS.values(), ids=list(KINDS))
def test_an_old_bundle_opens_as_the_same_model(changes: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(SPACE.vocab_size, **changes)
    write_old(model, tmp_path)
    opened, space = open_model(tmp_path)
    assert space == SPACE and opened.config == model.config
    found, expected = opened.state_dict(), model.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    tables = dict(model.named_buffers())
    assert all(torch.equal(buffer, tables[name].float()) for name, buffer in opened.named_buffers())
    save_model(opened, space, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["trunk"]["dim"] == 16


def test_every_old_parameter_has_one_new_name() -> None:
    names = [state_name(name) for name in OLD_ALL]
    assert len(set(names)) == len(names)
    assert set(names) == set(tiny_model(SPACE.vocab_size, **KINDS["all"]).state_dict())
    assert {old_name(name) for name in names} == set(OLD_ALL)


@pytest.mark.parametrize("row", range(len(STATE_NAMES)), ids=[pattern for pattern, _ in STATE_NAMES])
def test_every_row_of_the_table_renames_an_old_parameter(row: int) -> None:
    changed = []
    for name in OLD_ALL:
        for pattern, new in STATE_NAMES[:row]:
            name = re.sub(pattern, new, name)
        pattern, new = STATE_NAMES[row]
        changed.append(re.sub(pattern, new, name) != name)
    assert any(changed)


def test_every_old_field_is_read_and_none_of_them_is_todays() -> None:
    assert set(FLOW_NAMES) <= set(OLD_FLOW) and set(VISION_NAMES) | set(PATCH_NAMES) <= set(OLD_VISION)
    flow, vision = FLOW_NAMES.keys() & vars(FLOW).keys(), VISION_NAMES.keys() & vars(VISION).keys()
    assert flow == vision == set()
    config = upgrade_model_config(old_config(tiny_model(SPACE.vocab_size, **KINDS["all"])))
    assert config["flow"] == vars(FLOW) and ModelConfig.from_dict(config).vision == VISION
    assert config["trunk"]["rope"] == {"theta": 500.0}


@pytest.mark.parametrize("changes", KINDS.values(), ids=list(KINDS))
def test_todays_names_stay_and_a_second_upgrade_changes_nothing(changes: dict[str, Any]) -> None:
    model = tiny_model(SPACE.vocab_size, **changes)
    state, config = model.state_dict(), model.config.to_dict()
    assert list(upgrade_state(state)) == list(state) and upgrade_model_config(config) == config
    once = upgrade_model_config(old_config(model))
    assert upgrade_model_config(once) == once
    assert list(upgrade_state({old_name(name): value for name, value in state.items()})) == list(state)


def test_fields_that_an_old_config_leaves_out_have_their_defaults(tmp_path: Path) -> None:
    """The first bundles knew no branches."""
    model = tiny_model(SPACE.vocab_size)
    write_old(model, tmp_path)
    config = old_config(model)
    for newer in ("flow", "vision", "mixture", "qkv_bias", "qk_norm", "rope_theta"):
        del config[newer]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_model(tmp_path)[0].config == model.config


def test_a_parameter_of_no_version_is_named(tmp_path: Path) -> None:
    write_old(tiny_model(SPACE.vocab_size), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "flow.gate.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"branches\.latents\.gate\.weight") as error:
        open_model(tmp_path)
    assert "\n" not in str(error.value)
