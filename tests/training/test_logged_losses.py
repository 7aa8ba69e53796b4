"""What a run logs: means over the tokens of one kind, which no weight of the other kind changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import fit_arguments, logged
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
