"""A run has the same losses however many processes load its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import FLOW, VISION, fit_arguments, logged
from unimodal.training.cli import run

BRANCHES: dict[str, dict[str, Any]] = {"discrete": {}, "flow and ViT": {**FLOW, **VISION}}


@pytest.mark.slow
@pytest.mark.parametrize("options", BRANCHES.values(), ids=list(BRANCHES))
def test_losses_do_not_depend_on_the_number_of_loader_processes(options: dict[str, Any], tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path / "shards", latents=True, patch=4)
    found = {}
    for workers in (0, 1, 3):
        root = tmp_path / str(workers)
        run(fit_arguments(shards, root, trainer__max_steps=5, data__num_workers=workers, **options))
        found[workers] = logged(root, "train/loss")
    assert found[0] == found[1] == found[3] and len(set(found[0].values())) == 5
