"""Schedules, what is frozen, where weights start and how they are fine-tuned: each run resumes to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import Options, fit_arguments, losses
from unimodal.training.cli import run

STEPS, HALF = 8, 4
ADAMW: Options = {"model__optimizer": "AdamWConfig", "model__optimizer__learning_rate": 0.02}
SCHEDULES: dict[str, Options] = {
    decay: {**ADAMW, "model__schedule__decay": decay} for decay in ("constant", "linear", "cosine", "exponential")
}
SCHEDULES["stable, then decay"] = {**SCHEDULES["linear"], "model__schedule__decay_from": 0.6}
STARTS: dict[str, Options] = {
    "frozen": {**ADAMW, "model__start__freeze": '["trunk.blocks.0.*", "trunk.embedding.weight"]'},
    "trainable": {**ADAMW, "model__start__trainable": '["trunk.blocks.1.*"]'},
    "rows": {
        **ADAMW,
        "model__start__trainable": '["heads.tokens.weight"]',
        "model__start__trainable_rows": "image",
        "model__optimizer__weight_decay": 0.0,
    },
    "rates": {**ADAMW, "model__optimizer__rates": '{"trunk.blocks.0.*": 0.1}'},
    "fine-tuned": {
        **ADAMW,
        "model__start__dropout": 0.05,
        "model__schedule__decay": "cosine",
        "data__templates__prompt_weight": 0.0,
        "data__templates__shown_image_weight": 0.0,
    },
}


class EndAt(L.Callback):
    """Ends a run after a step, as if it had been killed: all that is planned stays as it was."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, outputs, batch, batch_idx
        trainer.should_stop |= trainer.global_step >= self.step


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def bundle(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("start")
    run(fit_arguments(shards, root, trainer__max_steps=2))
    return root / "model"


def part(shards: Path, root: Path, *more: str, **options: str | float) -> None:
    root.mkdir(parents=True, exist_ok=True)
    callback = ["--trainer.callbacks+=tests.oracles.tiny_training.LossFile"]
    callback += [f"--trainer.callbacks.path={root / 'losses'}"]
    settings: Options = {"trainer__max_steps": STEPS, "checkpoint__every_n_train_steps": HALF, **options}
    run([*fit_arguments(shards, root, **settings), *callback, *more])


def check(shards: Path, root: Path, **options: str | float) -> dict[str, torch.Tensor]:
    """Resumed = unbroken, losses and bundle; the bundle's weights."""
    part(shards, root / "whole", **options)
    end = ["--trainer.callbacks+=tests.training.test_settings_resume.EndAt", f"--trainer.callbacks.step={HALF}"]
    part(shards, root / "two", *end, **options)
    assert len(losses(root / "two" / "losses")) == HALF
    part(shards, root / "two", "--ckpt_path=last", **options)
    assert losses(root / "two" / "losses") == losses(root / "whole" / "losses")
    whole, two = (load_file(root / name / "model" / "model.safetensors") for name in ("whole", "two"))
    assert all(torch.equal(whole[name], two[name]) for name in whole)
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("options", SCHEDULES.values(), ids=SCHEDULES)
def test_every_schedule_resumes_exactly(options: Options, shards: Path, tmp_path: Path) -> None:
    check(shards, tmp_path, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", STARTS)
def test_every_way_to_start_resumes_exactly(kind: str, shards: Path, bundle: Path, tmp_path: Path) -> None:
    found = check(shards, tmp_path, **STARTS[kind], model__start__bundle=str(bundle))
    before = load_file(bundle / "model.safetensors")
    kept = {name for name in before if torch.equal(before[name], found[name])}
    if kind == "frozen":
        assert kept == {name for name in before if name.startswith("trunk.blocks.0.") or "embedding" in name}
    elif kind == "trainable":
        assert kept == {name for name in before if not name.startswith("trunk.blocks.1.")}
    else:
        assert len(kept) == (len(before) - 1 if kind == "rows" else 0)
