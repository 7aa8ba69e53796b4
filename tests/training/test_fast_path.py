"""The path that users run, compiled and in mixed precision, trains as the plain one does."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch._dynamo.utils import counters

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import fit_arguments, logged
from unimodal.training.cli import run

STEPS = 20


def losses(shards: Path, root: Path, **options: str) -> list[float]:
    """Of the first steps of a run, at a low rate: rounding in one step then changes the next ones little."""
    rate = {"model__optimizer": "AdamWConfig", "model__optimizer__learning_rate": 1e-3}
    run(fit_arguments(shards, root, trainer__max_steps=STEPS, **rate, **options))
    return [float(loss) for loss in logged(root, "train/loss").values()]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-4), ("bf16-mixed", 0.02)])
def test_compiled_steps_have_the_losses_of_float32_uncompiled(precision: str, tolerance: float, tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path / "shards")
    plain = losses(shards, tmp_path / "plain", model__compile="false")
    graphs = counters["stats"]["unique_graphs"]
    fast = losses(shards, tmp_path / "fast", model__compile="true", trainer__precision=precision)
    assert len(plain) == STEPS and plain[-1] < 0.98 * plain[0]
    assert fast == pytest.approx(plain, rel=tolerance)
    assert counters["stats"]["unique_graphs"] > graphs, "nothing was compiled"
    assert fast != plain or precision == "32-true", "nothing was rounded"
