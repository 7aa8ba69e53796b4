"""The noise of the flow branch: another for every batch of a run, wherever it is trained, and the same to validate on.

Every document of these runs is one and the same picture without a caption, always drawn, and nothing is learnt, so
that the loss of a batch depends on its noise alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import FLOW, finish, fit_arguments, flow_objectives, logged, start_training
from tests.oracles.watching import BatchLosses, EnteringLatents, batch_losses, watched
from unimodal.training.cli import run

DRAWN: dict[str, str | float] = {
    "model__optimizer": "AdamWConfig",
    "model__optimizer__learning_rate": 0.0,
    "data__validation_share": 0.0,
    "data__templates__image_first": 0.0,
    "data__templates__drop_prompt": 1.0,
    "data__templates__latents": "{whole: 0.0}",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one picture."""
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", 1, latents=True)


def arguments(shards: Path, root: Path, flow: dict[str, Any] | None = None, **options: Any) -> list[str]:
    return fit_arguments(shards, root, **{**FLOW, **flow_objectives(weight=0.5, **(flow or {})), **DRAWN, **options})


@pytest.mark.slow
def test_batches_of_one_step_have_different_noise(shards: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"trainer__max_steps": 3, "trainer__accumulate_grad_batches": 2}
    run([*arguments(shards, tmp_path, **options), *watched(BatchLosses, tmp_path / "losses")])
    assert len(set(batch_losses(tmp_path / "losses"))) == 6
    assert len(set(logged(tmp_path, "train/loss_text").values())) == 1, "these batches differ in more than their noise"


@pytest.mark.slow
def test_noise_repeats_with_the_seed_of_the_flow_and_changes_with_it(shards: Path, tmp_path: Path) -> None:
    found = []
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        given = arguments(shards, tmp_path / f"run-{name}", {"seed": seed}, trainer__max_steps=2)
        run([*given, *watched(BatchLosses, tmp_path / name)])
        found.append(batch_losses(tmp_path / name))
    assert found[0] == found[1] and not set(found[0]) & set(found[2])


@pytest.mark.ranks
def test_ranks_have_different_noise_that_of_the_batches_of_one_rank_in_turn(shards: Path, tmp_path: Path) -> None:
    many = {"trainer__devices": 2, "trainer__strategy": "ddp", "trainer__accumulate_grad_batches": 2}
    ways: dict[str, dict[str, Any]] = {"one": {"trainer__accumulate_grad_batches": 4}, "two": many}
    for name, options in ways.items():
        given = arguments(shards, tmp_path / f"run-{name}", trainer__max_steps=2, **options)
        process = start_training([*given, *watched(BatchLosses, tmp_path / name)])
        output = finish(process)
        assert process.returncode == 0, output
    alone, together = batch_losses(tmp_path / "one"), batch_losses(tmp_path / "two", ranks=2)
    assert len(set(together)) == 8
    assert [float.fromhex(loss) for loss in together] == pytest.approx([float.fromhex(loss) for loss in alone])


@pytest.mark.slow
def test_validation_draws_the_same_noise_every_time(shards: Path, tmp_path: Path) -> None:
    """Also where training draws random numbers in between, for dropout."""
    often = {"trainer__val_check_interval": 1, "trainer__check_val_every_n_epoch": "null", "model__dropout": 0.1}
    options = {**often, "trainer__limit_val_batches": 1, "data__validation_share": 0.5, "trainer__max_steps": 3}
    run(arguments(tiny_shards(tmp_path / "shards", 24, latents=True), tmp_path / "run", **options))
    found = logged(tmp_path / "run", "val/loss_flow")
    assert len(found) == 3 and len(set(found.values())) == 1
    assert len(set(logged(tmp_path / "run", "train/loss_flow").values())) == 3


def entering(shards: Path, root: Path, shift: float) -> torch.Tensor:
    """The latents that enter the model in the first steps of a run."""
    run([*arguments(shards, root, {"shift": shift}, trainer__max_steps=4), *watched(EnteringLatents, root / "in")])
    return torch.cat(torch.load(root / "in"))


@pytest.mark.slow
def test_a_larger_shift_of_times_trains_nearer_to_noise(shards: Path, tmp_path: Path) -> None:
    """The time of a latent is read off what enters: how far on its way from picture to noise it is."""
    shifts = (1e-7, 1.0, 4.0, 1e7)
    picture, *between, noise = [entering(shards, tmp_path / str(shift), shift) for shift in shifts]
    way = noise - picture
    plain, shifted = [((x - picture) * way).sum(-1) / way.square().sum(-1) for x in between]
    torch.testing.assert_close(shifted, 4 * plain / (1 + 3 * plain), rtol=0, atol=1e-4)
    assert 0.3 < float(plain.mean()) < 0.7 and (shifted > plain).all()
