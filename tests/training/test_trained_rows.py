"""Training some rows of embedding and head: all other numbers of a model stay as they are, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import Options, finish, fit_arguments, start_training
from tokenizers_vq.token_space import TokenSpace
from unimodal.training.cli import main, run
from unimodal.training.run_checks import check_run

ROWS: Options = {
    "model__start__trainable": '["heads.tokens.weight"]',
    "model__start__trainable_rows": "image",
    "model__optimizer": "AdamWConfig",
    "model__optimizer__weight_decay": 0.0,
    "model__optimizer__learning_rate": 0.05,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def start(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("start")
    run(fit_arguments(shards, root, trainer__max_steps=3))
    return root / "model"


def check(start: Path, trained: Path, tables: set[str]) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (start, trained))
    offset = TokenSpace.open(start).image_offset
    for name, tensor in before.items():
        if name in tables:
            assert torch.equal(after[name][:offset], tensor[:offset])
            moved = (after[name][offset:] != tensor[offset:]).any(-1)
            assert moved.any()
        else:
            assert torch.equal(after[name], tensor), name


@pytest.mark.slow
def test_rows_of_text_and_all_other_weights_stay(shards: Path, start: Path, tmp_path: Path) -> None:
    run(fit_arguments(shards, tmp_path, model__start__bundle=str(start), **ROWS))
    check(start, tmp_path / "model", {"heads.tokens.weight"})
    both: Options = {**ROWS, "model__start__trainable": '["heads.tokens.weight", "trunk.embedding.weight"]'}
    run(fit_arguments(shards, tmp_path / "both", model__start__bundle=str(start), **both))
    check(start, tmp_path / "both" / "model", {"heads.tokens.weight", "trunk.embedding.weight"})


@pytest.mark.ranks
def test_two_sharded_ranks_leave_the_same_rows(shards: Path, start: Path, tmp_path: Path) -> None:
    options: Options = {**ROWS, "model__start__bundle": str(start), "trainer__devices": 2}
    process = start_training(fit_arguments(shards, tmp_path, **options, trainer__strategy="sharded"))
    output = finish(process, 240)
    assert process.returncode == 0, output
    check(start, tmp_path / "model", {"heads.tokens.weight"})


def test_reinforcement_learning_moves_all_rows_and_says_so() -> None:
    start = {"bundle": "somewhere", "trainable_rows": "image"}
    model = {"class_path": "unimodal.training.rl.module.PolicyModule", "init_args": {"start": start}}
    with pytest.raises(ValueError, match="in reinforcement learning all rows move"):
        check_run({"trainer": {"accelerator": "cpu", "default_root_dir": "runs/unnamed"}, "model": model, "data": None})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__optimizer__weight_decay": 0.1}, "would shrink other rows"),
        ({"model__start__bundle": None}, "name a bundle to start from"),
        ({"model__start__trainable_rows": "text"}, "trainable_rows"),
    ],
)
def test_rows_that_cannot_be_kept_are_one_line(
    changes: dict[str, str | float | None],
    words: str,
    shards: Path,
    start: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {**ROWS, "model__start__bundle": str(start), **changes}
    options: Options = {name: value for name, value in given.items() if value is not None}
    if "model__start__bundle" not in options:
        options.pop("model__start__trainable")
    with pytest.raises(SystemExit) as end:
        main(fit_arguments(shards, tmp_path, **options))
    said = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and words in said[-1]
