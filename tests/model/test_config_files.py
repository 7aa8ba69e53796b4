"""What a bundle says of its model comes back from disk, field by field."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import unimodal
from tests.oracles.tiny import tiny_flow_pipeline


def plain(config: Any, before: str = "") -> dict[str, Any]:
    """Every field of a config and of those in it, by dotted names."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= plain(value, f"{before}{field.name}.")
        else:
            found[before + field.name] = value
    return found


def changed(config: Any, path: str, value: Any) -> Any:
    """A config with another value at a dotted name."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(config, **{name: changed(getattr(config, name), rest, value) if rest else value})


OTHERS = {
    "trunk.norm_eps": 1e-3,
    "trunk.rope.theta": 500.0,
    "trunk.qk_norm.eps": 1e-2,
    "trunk.max_length": 99,
    "trunk.dropout": 0.25,
    "flow.pos_embed_period": 50.0,
    "flow.axial_rope_max": 0.5,
    "vision.norm_eps": 1e-3,
    "vision.pos_embed_period": 60.0,
}
"""Values that fit the same weights."""


def test_every_field_of_a_config_comes_back_from_its_bundle(tmp_path: Path) -> None:
    pipeline = tiny_flow_pipeline(vit=True)
    pipeline.save(tmp_path / "as-it-is")
    fields = plain(pipeline.model.config)
    assert plain(unimodal.load(tmp_path / "as-it-is").model.config) == fields
    for path, value in OTHERS.items():
        assert fields[path] != value
        pipeline.model.config = changed(pipeline.model.config, path, value)
    pipeline.save(tmp_path / "changed")
    assert plain(unimodal.load(tmp_path / "changed").model.config) == {**fields, **OTHERS}
