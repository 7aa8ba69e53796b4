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


def test_every_field_of_a_config_comes_back_from_its_bundle(tmp_path: Path) -> None:
    pipeline = tiny_flow_pipeline(vit=True)
    pipeline.save(tmp_path / "as-it-is")
    fields = plain(pipeline.transformer.config)
    assert {name.split(".")[0] for name in fields if "." in name} >= {"flow", "vision", "qk_norm"}
    assert plain(unimodal.load(tmp_path / "as-it-is").transformer.config) == fields
    for name, field in {"norm_eps": 1e-3, "rope_theta": 500.0, "max_length": 99, "dropout": 0.25}.items():
        assert fields[name] != field
        pipeline.transformer.config = dataclasses.replace(pipeline.transformer.config, **{name: field})
    pipeline.save(tmp_path / "changed")
    assert unimodal.load(tmp_path / "changed").transformer.config == pipeline.transformer.config
