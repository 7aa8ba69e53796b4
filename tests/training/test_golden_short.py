"""The first losses of a small run of each kind of model, to six digits: whatever changes training shows here first.

`python -m unimodal.training.golden` is the long form, for the recipes at their full size. Where a change is meant, the
numbers are those that the failing test prints.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import FLOW, VISION, Options, fit_arguments, losses
from unimodal.training.cli import run

KINDS: dict[str, Options] = {
    "discrete": {"model__trunk__dropout": 0.0},
    "AdamW": {"model__optimizer": "AdamWConfig"},
    "flow": FLOW,
    "ViT": VISION,
    "experts": {"model__trunk__moe": "{experts: 4, top_k: 2, hidden_dim: 12}"},
    "multi-token": {"model__multi_token": "{depth: 1}"},
}
GOLDEN: dict[str, tuple[float, ...]] = {
    "discrete": (5.774421, 5.759387, 5.725994, 5.702151, 5.67115, 5.650158),
    "AdamW": (5.774421, 5.760858, 5.729986, 5.712184, 5.684974, 5.665876),
    "flow": (7.002484, 5.755062, 6.894721, 5.686729, 7.291609, 6.888965),
    "ViT": (5.763162, 5.748856, 5.719261, 5.692467, 5.664302, 5.661002),
    "experts": (5.763327, 5.74916, 5.734289, 5.689287, 5.673792, 5.643179),
    "multi-token": (7.249802, 7.233508, 7.195354, 7.162676, 7.125981, 7.093019),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", latents=True, patch=4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_losses_are_the_golden_ones(kind: str, shards: Path, tmp_path: Path) -> None:
    """In float64, so that other processors agree."""
    path = tmp_path / "losses"
    callback = ["--trainer.callbacks+=tests.oracles.tiny_training.LossFile", f"--trainer.callbacks.path={path}"]
    options: Options = {**KINDS[kind], "trainer__max_steps": 6, "trainer__precision": "64-true", "monitors__every": 0}
    run([*fit_arguments(shards, tmp_path, **options), *callback])
    found = tuple(round(float.fromhex(loss), 6) for _, loss in losses(path))
    assert found == pytest.approx(GOLDEN[kind], rel=1e-5), f'"{kind}": {found},'
