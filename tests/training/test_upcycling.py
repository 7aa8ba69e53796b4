"""Upcycling: experts of a dense model compute what it computes, and differ from one another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.model.test_moe import TINY
from tests.oracles.passes import logits
from tests.oracles.tiny import tiny_model, tiny_pipeline
from unimodal.model.model import UnifiedModel
from unimodal.training.start import StartConfig, start
from unimodal.training.upcycling import UpcyclingConfig

WIDTH = 24
"""Hidden units of the dense model."""


def grown(folder: Path, redraw: float, **changes: Any) -> tuple[UnifiedModel, UnifiedModel]:
    """A dense model, and a mixture of experts made of it."""
    pipeline = tiny_pipeline(dtype=torch.float64)
    pipeline.save(folder / "dense")
    moe = replace(TINY, **{"hidden_dim": WIDTH, "shared": 0, **changes})
    model = tiny_model(pipeline.token_space.vocab_size, moe=moe, dtype=torch.float64, seed=5)
    config = StartConfig(bundle=folder / "dense", upcycling=UpcyclingConfig(redraw=redraw))
    start(model, config, pipeline.token_space, None)
    return pipeline.model, model


@pytest.mark.parametrize(
    "changes",
    [{}, {"first_dense": 1}, {"scale": 2.5}, {"top_k": 1}, {"hidden_dim": 12, "top_k": 5, "shared": 0}],
    ids=str,
)
def test_experts_that_keep_all_units_compute_the_dense_model(changes: dict[str, Any], tmp_path: Path) -> None:
    dense, mixture = grown(tmp_path, 0.0, **changes)
    ids = torch.randint(dense.config.vocab_size, (2, 20))
    if changes.get("hidden_dim", WIDTH) == WIDTH:
        torch.testing.assert_close(logits(mixture, ids), logits(dense, ids), rtol=0, atol=1e-10)
    else:
        found, wanted = logits(mixture, ids).flatten(), logits(dense, ids).flatten()
        assert float(F.cosine_similarity(found, wanted, dim=0)) > 0.8, "about the dense model"


def test_shared_experts_share_the_work(tmp_path: Path) -> None:
    dense, mixture = grown(tmp_path, 0.0, shared=1)
    ids = torch.randint(dense.config.vocab_size, (2, 20))
    torch.testing.assert_close(logits(mixture, ids), logits(dense, ids), rtol=0, atol=1e-10)


def test_a_part_of_each_expert_is_drawn_anew(tmp_path: Path) -> None:
    _, mixture = grown(tmp_path, 0.5)
    experts = mixture.get_parameter("trunk.blocks.1.feed_forward.experts.gate_proj")
    alike = F.cosine_similarity(experts[0].sort(0).values.flatten(), experts[1].sort(0).values.flatten(), dim=0)
    _, copies = grown(tmp_path / "again", 0.0)
    units = copies.get_parameter("trunk.blocks.1.feed_forward.experts.gate_proj")
    same = F.cosine_similarity(units[0].sort(0).values.flatten(), units[1].sort(0).values.flatten(), dim=0)
    assert float(same) == pytest.approx(1) and float(alike) < 0.95
    kept = (experts[0][:, None] == units.flatten(0, 1)[None]).all(-1).any(-1)
    assert int(kept.sum()) == WIDTH // 2


def test_what_cannot_be_upcycled_is_one_line(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.save(tmp_path / "dense")
    space = pipeline.token_space
    wide = tiny_model(space.vocab_size, moe=replace(TINY, hidden_dim=WIDTH + 1))
    how = StartConfig(bundle=tmp_path / "dense", upcycling=UpcyclingConfig())
    with pytest.raises(ValueError, match="25 hidden units, 24 to take them from"):
        start(wide, how, space, None)
    with pytest.raises(ValueError, match=r"this run's model\.trunk\.moe set"):
        start(tiny_model(space.vocab_size), how, space, None)
    with pytest.raises(ValueError, match="its moe is None"):
        start(wide, StartConfig(bundle=tmp_path / "dense"), space, None)
    with pytest.raises(ValueError, match=r"name it in start\.bundle"):
        StartConfig(upcycling=UpcyclingConfig())
