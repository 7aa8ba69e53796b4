"""What a run logs: means over the tokens of one kind, which no weight of the other kind changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import finish, fit_arguments, logged, start_training
from unimodal.training.cli import run

WITHOUT_Z = "[{class_path: NextToken, init_args: {z_weight: 0.0}}]"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards")


def first(shards: Path, root: Path, weight: float) -> dict[str, float]:
    """The losses of the first step, in which pictures have a weight."""
    weights = {f"data__templates__{kind}_image_weight": weight for kind in ("shown", "drawn")}
    run(fit_arguments(shards, root, trainer__max_steps=1, model__objectives=WITHOUT_Z, **weights))
    return {name: float(logged(root, f"train/{name}")[0]) for name in ("loss", "loss_text", "loss_image")}


@pytest.mark.slow
def test_the_loss_of_a_kind_is_a_mean_over_its_own_tokens(shards: Path, tmp_path: Path) -> None:
    """A model that knows nothing yet finds every token of either kind about as likely as any other of all ids."""
    light, heavy = (first(shards, tmp_path / str(weight), weight) for weight in (1.0, 50.0))
    assert light["loss_image"] == pytest.approx(heavy["loss_image"], rel=1e-5)
    assert heavy["loss"] != pytest.approx(light["loss"], rel=1e-4)
    for losses in (light, heavy):
        assert losses["loss_text"] == pytest.approx(losses["loss_image"], rel=0.02)
    assert min(light["loss_text"], light["loss_image"]) < light["loss"] < max(light["loss_text"], light["loss_image"])


@pytest.mark.slow
def test_two_ranks_validate_what_one_validates(shards: Path, tmp_path: Path) -> None:
    """Losses of held-out documents, of an odd number of batches; the last round holds a batch of padding."""
    options: dict[str, str | float] = {
        "trainer__max_steps": 1,
        "trainer__val_check_interval": 1,
        "trainer__check_val_every_n_epoch": "null",
        "model__optimizer": "AdamWConfig",
        "model__optimizer__learning_rate": 0.0,
        "data__validation_share": 0.5,
        "data__stream__rows": 2,
        "data__validation_batches": 3,
        "trainer__limit_val_batches": 1.0,
    }
    found = []
    for ranks in (1, 2):
        given = fit_arguments(shards, tmp_path / str(ranks), **options, trainer__devices=ranks)
        given += ["--trainer.strategy", "ddp"] if ranks > 1 else []
        process = start_training(given)
        output = finish(process)
        assert process.returncode == 0, output
        found.append([float(value) for value in logged(tmp_path / str(ranks), "val/loss").values()])
    assert found[0] == pytest.approx(found[1], rel=1e-6) and found[0]
