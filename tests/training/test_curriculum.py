"""Curricula: stages one after the other, resumed wherever they were killed, and checked before anything is trained."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.oracles.tiny import tiny_pipeline, tiny_shards
from tests.oracles.tiny_training import ROOT, finish, kill, losses, start_training
from unimodal.report import write_report
from unimodal.training.cli import main
from unimodal.training.curriculum import StageRunner, read_curriculum, run_curriculum

RECIPES = sorted((ROOT / "configs" / "curriculum").glob("*.yaml"))
LOSS_FILE = "tests.oracles.tiny_training.LossFile"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("data") / "shards", patch=4)


def written(path: Path, root: Path, shards: Path, **changes: Any) -> Path:
    """Four stages: all, the eyes alone, all again at two rates and another length, by tokens; then another mixture."""
    shared = {
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.limit_val_batches": 0,
        "trainer.log_every_n_steps": 1,
        "checkpoint.every_n_train_steps": 2,
        "samples.every": 0,
        "model": "TransformerModule",
        "model.compile": False,
        "model.vision": {"dim": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 24},
        "data": "TokenDataModule",
        "data.shards": [str(shards)],
        "data.stream.rows": 4,
        "data.templates.seen": "patches",
        "data.templates.patch_size": 4,
    }
    trunk = {"dim": 16, "num_layers": 2, "hidden_dim": 24, "max_length": 64}
    eyes = changes.get("eyes", ["branches.patches.*"])
    rates = {"branches.patches.encoder.*": 0.1}
    adamw = {"model.optimizer": "AdamWConfig", "model.optimizer.rates": changes.get("rates", rates)}
    twice = {"data.shards": [str(shards)] * 2, "data.mixture": {"weights": [3, 1]}}
    stages = [
        {"name": "all", "settings": {"model.trunk": trunk, "trainer.max_steps": 5, "data.stream.length": 48}},
        {"name": "eyes", "settings": {"trainer.max_steps": 5, "data.stream.length": 48, "model.start.trainable": eyes}},
        {"name": "joint", "tokens": 1200, "settings": {"data.stream.length": 64, **adamw}},
        {"name": "last", "settings": {"trainer.max_steps": 4, "data.stream.length": 48, **twice}},
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"curriculum": {"root": str(root), "shared": shared, "stages": stages}}))
    return path


def command(path: Path, root: Path) -> list[str]:
    noted = [f"--trainer.callbacks+={LOSS_FILE}", f"--trainer.callbacks.path={root / 'losses'}"]
    return ["fit", f"--config={path}", *noted]


def whole(path: Path, root: Path) -> list[tuple[int, str]]:
    """An unbroken run's losses."""
    root.mkdir(parents=True, exist_ok=True)
    process = start_training(command(path, root))
    output = finish(process, 240)
    assert process.returncode == 0, output
    return losses(root / "losses")


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.ranks)])
def test_a_curriculum_that_is_killed_gives_the_losses_and_the_bundle_of_an_unbroken_one(
    kills: int, shards: Path, tmp_path: Path
) -> None:
    expected = whole(written(tmp_path / "one.yaml", tmp_path / "one", shards), tmp_path / "one")
    root, timer = tmp_path / "two", random.Random(kills)
    path = written(tmp_path / "two.yaml", root, shards)
    root.mkdir()
    for _ in range(kills):
        process, asked = start_training(command(path, root)), time.monotonic() + timer.uniform(4, 20)
        while time.monotonic() < asked and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is None:
            kill(process)
    found = whole(path, root)
    assert set(found) == set(expected) and len(expected) == 5 + 5 + 5 + 4
    for number, name in enumerate(["all", "eyes", "joint", "last"], start=1):
        one, two = (
            load_file(tmp_path / r / f"{number}-{name}" / "model" / "model.safetensors") for r in ("one", "two")
        )
        assert one.keys() == two.keys() and all((one[key] == two[key]).all() for key in one), name
    first, second = (
        load_file(tmp_path / "one" / folder / "model" / "model.safetensors") for folder in ("1-all", "2-eyes")
    )
    moved = {name for name in first if not (first[name] == second[name]).all()}
    assert moved and all(name.startswith("branches.patches.") for name in moved)
    assert "all → eyes → joint → last" in write_report(root).read_text()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"eyes": ["branches.patch.*"]}, "stage eyes: start.trainable: no parameter is called 'branches.patch.*'"),
        ({"rates": {"branch.*": 0.1}}, "stage joint: optimizer.rates: no parameter is called 'branch.*'"),
    ],
    ids=["trainable", "rates"],
)
def test_a_wrong_pattern_is_one_line_before_any_stage_begins(
    changes: dict[str, Any], reason: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "wrong.yaml", tmp_path / "run", shards, **changes)
    with pytest.raises(SystemExit, match="2"):
        main(["fit", f"--config={path}"])
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_stage_that_ended_under_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump({"curriculum": {"root": str(tmp_path / "run"), "stages": [{"name": "a"}]}}))
    curriculum = read_curriculum(path)
    assert curriculum is not None
    trained: list[list[str]] = []

    def fit(arguments: list[str]) -> None:
        trained.append(arguments)
        (curriculum.folder(0) / "model").mkdir(parents=True)

    runner = StageRunner(fit, lambda arguments, known: (known, 1))
    run_curriculum(curriculum, [], runner)
    run_curriculum(curriculum, [], runner)
    assert len(trained) == 1
    changed = replace(curriculum, stages=(replace(curriculum.stages[0], settings={"trainer.max_steps": 9}),))
    with pytest.raises(ValueError, match=r"stage a ended under other settings than --trainer\.max_steps=9"):
        run_curriculum(changed, [], runner)


@pytest.mark.parametrize(
    "values",
    [
        {"stages": []},
        {"stages": [{"name": "a"}, {"name": "a"}]},
        {"stages": [{"name": "a/b"}]},
        {"stages": [{"name": "a", "tokens": 0}]},
        {"stages": [{"name": "a", "steps": 3}]},
        {"stage": []},
    ],
    ids=str,
)
def test_what_is_no_curriculum_is_one_line(values: Any, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({"curriculum": values}))
    with pytest.raises(ValueError) as error:
        read_curriculum(path)
    assert "\n" not in str(error.value)


TINY = {
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "trainer.strategy": "auto",
    "trainer.precision": "32-true",
    "trainer.max_steps": 2,
    "trainer.limit_val_batches": 0,
    "checkpoint.every_n_train_steps": 1,
    "samples.every": 0,
}


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_in_a_tiny_form(path: Path, tmp_path: Path) -> None:
    """Its stages, patterns, rates and templates, on a small model, but for the last of MiMo-VL, which is RL's own."""
    latents = path.stem == "bagel"
    shards = tiny_shards(tmp_path / "shards", patch=4, latents=latents)
    tiny_pipeline(max_length=64).save(tmp_path / "start")
    values = yaml.safe_load(path.read_text())["curriculum"]
    stages = [stage for stage in values["stages"] if "rl" not in "".join(stage.get("configs", []))]
    for stage in stages:
        settings = {**values["shared"], **stage.get("settings", {})}
        inner = ".init_args" if stage.get("configs") else ""
        settings = {name: value for name, value in settings.items() if name != "model.start.vision"} | TINY
        settings |= {f"data{inner}.shards": [str(shards)] * len(settings[f"data{inner}.shards"])}
        settings |= {f"data{inner}.stream.length": 64, f"data{inner}.stream.rows": 2, f"model{inner}.compile": False}
        if inner:
            tiny = {"dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "hidden_dim": 24, "max_length": 64}
            settings |= {f"model{inner}.trunk.{name}": value for name, value in tiny.items()}
            settings |= {f"model{inner}.parallel.activation_checkpointing": "none"}
        if "model.start.bundle" in settings:
            settings["model.start.bundle"] = str(tmp_path / "start")
        if "model.vision" in settings:
            sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 24}
            settings["model.vision"] = {**settings["model.vision"], **sizes}
            settings |= {"data.templates.patch_size": 4}
        if settings.get("data.templates.resampled_tokens"):
            settings["data.templates.resampled_tokens"] = 4
        if frozen := settings.get("model.start.trainable"):  # without a folder of a ViT its encoder is new
            settings["model.start.trainable"] = [pattern.replace("connector.", "") for pattern in frozen]
        stage["settings"] = settings
        stage["configs"] = [str((path.parent / config).resolve()) for config in stage.get("configs", [])]
    tiny = tmp_path / "tiny.yaml"
    tiny.write_text(yaml.safe_dump({"curriculum": {"root": str(tmp_path / "run"), "stages": stages}}))
    main(["fit", f"--config={tiny}"])
    for number, stage in enumerate(stages, start=1):
        folder = tmp_path / "run" / f"{number}-{stage['name']}"
        assert json.loads((folder / "finished.json").read_text())["arguments"]
        assert all(tensor.isfinite().all() for tensor in load_file(folder / "model" / "model.safetensors").values())
