"""The table of what is trained says each parameter once: its part, its group, its rate, or that it is not trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.oracles.tiny import tiny_model, tiny_shards
from tests.oracles.tiny_training import Options, fit_arguments
from unimodal.training.callbacks.parameters import FROZEN, parameter_counts
from unimodal.training.cli import run


def test_every_parameter_is_counted_once() -> None:
    model = tiny_model()
    model.token_head.weight.requires_grad_(False)
    groups = {id(parameter): "tables" for parameter in (model.token_head.weight, model.trunk.embedding.weight)}
    counts = parameter_counts(model, groups)
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert counts["heads.tokens", FROZEN] == model.token_head.weight.numel()
    assert counts["trunk.embedding", "tables"] == model.trunk.embedding.weight.numel()


@pytest.mark.slow
def test_a_run_prints_what_is_frozen_and_at_which_rate_the_rest_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shards = tiny_shards(tmp_path / "shards")
    run(fit_arguments(shards, tmp_path / "start", trainer__max_steps=1))
    options: Options = {
        "model__start__bundle": str(tmp_path / "start" / "model"),
        "model__start__trainable": '["heads.tokens.weight"]',
        "model__optimizer": "AdamWConfig",
        "model__optimizer__learning_rate": 0.04,
        "trainer__max_steps": 1,
    }
    capsys.readouterr()
    run(fit_arguments(shards, tmp_path / "run", **options))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "│" in line]
    rows = [[word for word in line if word != "│"] for line in lines]
    head = load_file(tmp_path / "start" / "model" / "model.safetensors")["heads.tokens.weight"].numel()
    assert ["heads.tokens", "decayed", "0.04", f"{head:,}"] in rows
    assert {row[0] for row in rows if FROZEN in " ".join(row)} == {"trunk.embedding", "trunk.blocks", "trunk.norm"}
