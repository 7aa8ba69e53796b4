"""The study of branches writes its table and its picture from results files, whatever trained them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def branches() -> ModuleType:
    sys.path.insert(0, str(ROOT / "docs" / "studies"))
    spec = importlib.util.spec_from_file_location("branches", ROOT / "docs" / "studies" / "branches.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["branches"] = module
    spec.loader.exec_module(module)
    return module


def results(root: Path, branches: ModuleType, value: float) -> None:
    """What training and scoring leave of one model."""
    for task in branches.TASKS:
        names = {metric for _, of_task, metric, _ in branches.ROWS if of_task == task}
        examples = root / "results" / f"{task}_examples"
        examples.mkdir(parents=True)
        metrics = dict.fromkeys(names, value)
        (root / "results" / f"{task}.json").write_text(json.dumps({"metrics": metrics, "seconds": 40, "n": 20}))
        Image.new("RGB", (64, 64), "red").save(examples / "000_drawn.png")
    (root / "seconds.json").write_text("600.0")


def test_the_table_has_the_mean_and_each_seed(
    branches: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = branches.Study(out=tmp_path, at_once=1)
    for number, arm in enumerate(branches.ARMS):
        for seed in (0, 1):
            results(study.root(arm, seed), branches, 0.5 + 0.1 * number + 0.02 * seed)
    lines = branches.table(study, [0, 1]).splitlines()
    assert lines[0] == "| | codes | latents | latents, ViT |"
    assert (
        lines[2]
        == "| questions right, 9,673 | 0.5100 (0.5000, 0.5200) | 0.6100 (0.6000, 0.6200) | 0.7100 (0.7000, 0.7200) |"
    )
    assert any(line.startswith("| minutes of training | 10.0 (10.0, 10.0) |") for line in lines)
    assert any(line.startswith("| seconds a drawing, all of the task | 2.000 (2.000, 2.000) |") for line in lines)
    monkeypatch.setattr(branches, "HERE", tmp_path)
    with Image.open(branches.pictures(study, 0)) as sheet:
        assert sheet.size == (12 * 68, 6 * 68) and sheet.getpixel((10, 10)) == (255, 0, 0)


def test_every_arm_names_a_config_that_says_how_long_it_trains(branches: ModuleType) -> None:
    assert all((ROOT / arm.config).is_file() and arm.steps > 100 for arm in branches.ARMS)
    assert len({branches.Study(out=Path(), at_once=1).root(arm, 0) for arm in branches.ARMS}) == len(branches.ARMS)


def test_a_command_that_fails_stops_the_study_with_its_log(branches: ModuleType, tmp_path: Path) -> None:
    study = branches.Study(out=tmp_path, at_once=2)
    assert study.run("-c", "import os; assert os.environ['OMP_NUM_THREADS']") >= 0
    with pytest.raises(SystemExit, match=r"failed: see .*log\.txt"):
        study.run("-c", "raise SystemExit(3)")
