"""The planner: what it counts, by hand where that is possible, and against the memory of real steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles.tiny import tiny_config
from unimodal.cli import main
from unimodal.model.config import MultiTokenConfig
from unimodal.model.feedforward.config import MoEConfig
from unimodal.model.model import UnifiedModel
from unimodal.training.optimizers.build import AdamWConfig, MuonConfig, OptimizerConfig
from unimodal.training.parallel.estimate import PlannedSetting, estimate_memory, packed_text, trace_memory

CONFIG = tiny_config(vocab_size=512, dim=128, num_layers=4, hidden_dim=256)
BATCH = packed_text(2, 64, 20, 512)
WEIGHTS = sum(4 * parameter.numel() for parameter in UnifiedModel(CONFIG).parameters())


def planned(**options: object) -> PlannedSetting:
    return PlannedSetting(rows=2, length=64, **{"dtype": None, **options})  # pyright: ignore[reportArgumentType]


def test_on_one_rank_weights_and_states_are_those_of_the_model() -> None:
    found = trace_memory(CONFIG, AdamWConfig(), planned(layout="ddp"), BATCH)
    assert found.parts["parameters"] == WEIGHTS
    assert 2 * WEIGHTS <= found.parts["optimizer"] < 2 * WEIGHTS + 4096  # moments, and a step a parameter
    assert found.checkpoint == WEIGHTS + found.parts["optimizer"]
    muon = trace_memory(CONFIG, MuonConfig(), planned(layout="ddp"), BATCH)
    assert WEIGHTS < muon.checkpoint - WEIGHTS < 0.8 * found.parts["optimizer"]  # one buffer for a matrix


def test_ranks_share_what_is_sharded_and_copies_are_counted() -> None:
    alone, four = (trace_memory(CONFIG, AdamWConfig(), planned(ranks=n), BATCH) for n in (1, 4))
    assert four.parts["optimizer"] == pytest.approx(alone.parts["optimizer"] / 4, rel=0.02)
    assert four.checkpoint == pytest.approx(alone.checkpoint, rel=0.01)
    copies = trace_memory(CONFIG, AdamWConfig(), planned(ranks=4, replicate=2), BATCH)
    assert copies.parts["optimizer"] == pytest.approx(alone.parts["optimizer"] / 2, rel=0.02)


def test_checkpointing_and_fewer_rows_take_less() -> None:
    batch = packed_text(16, 64, 20, 512)
    kinds = ("none", "selective", "block")
    none, some, block = (
        trace_memory(CONFIG, AdamWConfig(), planned(activation_checkpointing=kind), batch).peak for kind in kinds
    )
    assert none > some > block
    assert trace_memory(CONFIG, AdamWConfig(), planned(), BATCH).peak < none


def test_a_deep_model_is_a_line_through_two_shallow_ones() -> None:
    deep = tiny_config(vocab_size=512, dim=128, num_layers=12, hidden_dim=256)
    batch = packed_text(16, 64, 20, 512)
    for layout in ("ddp", "sharded"):
        setting = planned(layout=layout, ranks=2)
        whole, line = (
            function(deep, AdamWConfig(), setting, batch).peak for function in (trace_memory, estimate_memory)
        )
        assert line == pytest.approx(whole, rel=0.02)


def test_nothing_is_allocated_for_a_model_that_would_fill_the_machine() -> None:
    large = tiny_config(vocab_size=65536, dim=8192, num_layers=2, num_heads=64, num_kv_heads=8, hidden_dim=22016)
    batch = packed_text(1, 512, 200, 65536)
    found = trace_memory(large, AdamWConfig(), planned(ranks=512, dtype=torch.bfloat16), batch)
    assert found.parts["optimizer"] < 2**30 < found.checkpoint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "optimizer"), [("ddp", MuonConfig()), ("sharded", AdamWConfig())], ids=["ddp", "sharded"]
)
def test_experts_and_multi_token_heads_are_planned_with_their_objectives(
    layout: str, optimizer: OptimizerConfig
) -> None:
    """Experts ask how many tokens each has, which tensors without numbers cannot say: a plan takes them as even."""
    moe = MoEConfig(experts=8, top_k=2, hidden_dim=128, first_dense=1, image_ids_from=400)
    shape: dict[str, Any] = {"vocab_size": 512, "dim": 128, "num_layers": 4, "hidden_dim": 256}
    models = [tiny_config(**shape), tiny_config(**shape, moe=moe)]
    models.append(tiny_config(**shape, multi_token=MultiTokenConfig()))
    plain, *others = (trace_memory(model, optimizer, planned(layout=layout, ranks=2), BATCH) for model in models)
    for config, found in zip(models[1:], others, strict=True):
        weights = sum(4 * parameter.numel() for parameter in UnifiedModel(config).parameters())
        share = 1 if layout == "ddp" else 2
        assert found.parts["parameters"] >= weights / share and found.peak > plain.peak


def test_the_command_names_a_setting_or_says_that_none_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "--config", "configs/run/demo.yaml", "--vocab-size", "1408"]
    assert main([*command, "--gpus", "2", "--memory", "24"]) == 0
    assert "take --trainer.strategy ddp" in capsys.readouterr().out
    assert main([*command, "--gpus", "1", "--memory", "0.01"]) == 1
    assert "none fits" in capsys.readouterr().out
    (tmp_path / "bad.yaml").write_text("model: {class_path: Nonsense}")
    for arguments in (["--config", str(tmp_path / "bad.yaml")], ["--config", str(tmp_path / "no.yaml")]):
        assert main(["plan", *arguments, "--gpus", "1"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
