"""Studies write their tables and pictures from results files, whatever trained them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from tests.oracles.tiny import tiny_shards
from unimodal.training.curriculum import read_curriculum

ROOT = Path(__file__).resolve().parent.parent


STUDIES = ROOT / "docs" / "studies"


def loaded(name: str) -> ModuleType:
    if str(STUDIES) not in sys.path:
        sys.path.insert(0, str(STUDIES))
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def branches() -> ModuleType:
    return loaded("branches")


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


def scores(root: Path, **found: dict[str, float]) -> None:
    (root / "results").mkdir(parents=True)
    for task, metrics in found.items():
        (root / "results" / f"{task}.json").write_text(json.dumps({"metrics": metrics}))


def test_the_table_of_eyes_has_an_arm_a_row(tmp_path: Path) -> None:
    eyes = loaded("eyes")
    study = eyes.EyesStudy(out=tmp_path, at_once=1)
    for number, arm in enumerate(eyes.ARMS):
        root = study.root(arm, 3)
        value: dict[str, float] = {"accuracy_colour": 0.25, "accuracy_shape": 0.25, "exact_match": 0.25}
        value["accuracy"] = 0.5 + 0.01 * number
        scores(root, vqa=value, caption=value, t2i=value)
        (root / "seconds.json").write_text("150")
    lines = eyes.table(study, [3]).splitlines()
    assert len(lines) == 2 + len(eyes.ARMS) and len({study.root(arm, 3) for arm in eyes.ARMS}) == len(eyes.ARMS)
    assert lines[2] == "| codes | 64 | 0.5000 | 0.250 | 0.250 | 0.2500 | 0.5000 | 2,200 | 2.5 |"
    assert any(line.startswith("| MoonViT, edits first | 16 | ") and "| 700 + 1,200 |" in line for line in lines)
    assert eyes.table(study, [4]).count("\n") == 1, "arms without scores have no row"


def test_the_arms_of_eyes_are_curricula_that_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eyes, commands = loaded("eyes"), list[tuple[str, ...]]()
    study = eyes.EyesStudy(out=tmp_path, at_once=2)
    monkeypatch.setattr(eyes.EyesStudy, "run", lambda _, *command: commands.append(command) or 1.0)
    study.train(eyes.ARMS, [0])
    study.train(eyes.ARMS, [0])
    assert len(commands) == len(eyes.ARMS), "what has ended is not trained again"
    found = [read_curriculum(Path(command[-1])) for command in commands]
    assert {len(curriculum.stages) for curriculum in found if curriculum} == {1, 2}
    for arm in eyes.ARMS:
        assert study.model(arm, 0).parent.parent == study.root(arm, 0)


def test_the_table_of_experts_has_the_mean_of_the_last_rows(tmp_path: Path) -> None:
    experts = loaded("experts")
    study = experts.ExpertStudy(out=tmp_path, at_once=1)
    for arm in experts.ARMS:
        root = study.root(arm, 0)
        scores(root, vqa={"accuracy": 0.9}, caption={"exact_match": 0.8})
        (root / "logs" / "version_0").mkdir(parents=True)
        rows = [f"{step},{9.0 if step < 18 else step - 17}," for step in range(20)]
        rows = ["step,train/tokens_per_second,val/loss_text", *rows, "20,,0.25"]
        (root / "logs" / "version_0" / "metrics.csv").write_text("\n".join(rows))
    lines = experts.table(study, [0]).splitlines()
    assert "| held-out text loss, nats |" + " 0.2500 |" * len(experts.ARMS) in lines
    assert "| tokens a second |" + " 2 |" * len(experts.ARMS) in lines, "(1 + 2) / 2, rounded to even"
    assert "| largest load over mean |" + " - |" * len(experts.ARMS) in lines


@pytest.fixture(scope="module")
def stability() -> ModuleType:
    return loaded("stability")


def stable_run(losses: list[float], alarms: dict[str, int] | None = None, planned: int | None = None) -> dict[str, Any]:
    """Losses on the fixed batches, every ten steps."""
    figures = [{"step": 10 * number, "fixed_loss": loss} for number, loss in enumerate(losses, 1)]
    steps = 10 * len(losses)
    return {"planned": planned or steps, "losses": [0.0] * steps, "figures": figures, "alarms": alarms or {}}


def test_a_run_has_diverged_from_where_its_loss_rises_for_good(stability: ModuleType) -> None:
    assert stability.diverged_at(stable_run([5, 4, 3, 3.4, 3])) is None
    assert stability.diverged_at(stable_run([5, 4, 3, 4, 3, 3.6, 9])) == 60
    assert stability.diverged_at(stable_run([5, 4, float("nan")])) == 30
    assert stability.diverged_at(stable_run([5, 4, 3], planned=100)) == 30
    warned = {"loss_rise": 10, "output_growth": 40, "attention_logit": 30}
    assert stability.first_alarm(warned) == ("attention_logit", 30)
    assert stability.first_alarm({"grad_norm_rise": 10}) is None


def test_the_table_of_stability_counts_what_diverged_and_how_early_it_was_warned(stability: ModuleType) -> None:
    plan = stability.StabilityPlan(stability.LONG_ARMS, (0.1,), 50)
    sound, broken = stable_run([5, 4, 3, 2, 1]), stable_run([5, 4, 3, 5, 6], {"attention_logit": 20})
    found = {
        plan.run(arm, 0.1, seed).name: broken if arm is plan.arms[1] and seed else sound
        for arm in plan.arms
        for seed in stability.SEEDS
    }
    lines = stability.table(found, plan).splitlines()
    assert lines[2] == "| QK-norm, z-loss, not clipped | 1.00 | 1.000 at 0.1 | - |"
    assert lines[3] == "| neither, not clipped | 4.33, 2 of 3 diverged | 4.333 at 0.1 | 2 of 2, by 20 steps |"


def test_a_small_decoder_of_the_study_trains_and_is_measured(stability: ModuleType, tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path / "shards", 40)
    run = stability.StabilityRun(arm=stability.ARMS[0], rate=1e-3, seed=0, steps=20)
    found = stability.train(run, str(shards))
    assert len(found["losses"]) == 20 == found["planned"] and stability.diverged_at(found) is None
    assert len(stability.fixed_losses(found)) == 2 and found["figures"][0]["attention_logit"] > 0


@pytest.fixture(scope="module")
def image_tokenizers() -> ModuleType:
    return loaded("image_tokenizers")


def test_jpeg_takes_no_more_bits_than_it_is_given_and_is_better_with_more(image_tokenizers: ModuleType) -> None:
    y, x = torch.meshgrid(torch.linspace(0, 9, 64), torch.linspace(0, 9, 64), indexing="ij")
    picture = torch.stack([torch.sin(x), torch.cos(y), torch.sin(x * y / 9)])[None].repeat(2, 1, 1, 1)
    few, many = (image_tokenizers.jpeg_at(picture, bits) for bits in (2000, 8000))
    assert few[1] <= 2000 < many[1] <= 8000 and many[0] > few[0] > 10
    least = image_tokenizers.jpeg_at(picture, 1)
    assert least[1] > 1  # the worst quality, and what it takes


def test_the_best_of_as_few_bits_are_bold(image_tokenizers: ModuleType) -> None:
    def row(name: str, bits: float, psnr: float) -> Any:
        others = dict.fromkeys(("ssim", "features", "photographs", "jpeg", "jpeg_bits", "seconds"), 1.0)
        return image_tokenizers.Measured(name=name, codes=64, bits=bits, psnr=psnr, **others)

    lines = image_tokenizers.table([row("large", 900, 20), row("best", 640, 22), row("larger", 2000, 25)]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| best", "| large", "| larger"]
    assert ["**" in line for line in lines[2:]] == [True, False, True]
