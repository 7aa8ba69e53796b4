"""Results files and the runner that writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from tests.oracles.tiny import tiny_picture_folder, tiny_pipeline
from unimodal.evaluation import results, run
from unimodal.evaluation.contract import Example, Sampling, TaskResult
from unimodal.evaluation.dual_encoder import train_dual_encoder
from unimodal.evaluation.run import EvaluationConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An imagefolder of three captioned pictures, one of them with a question."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rows = []
    for index, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (20, 10), colour).save(pictures / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "text": f"a {colour} circle"})
    rows[0] |= {"question": "what color is the shape?", "answer": "red"}
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return pictures


def result_of(metrics: dict[str, float], examples: list[Example]) -> TaskResult:
    return TaskResult(task="vqa", metrics=metrics, n=2, seconds=1.5, recipe={"seed": 0}, examples=examples)


def test_a_results_file_holds_what_the_contract_names(tmp_path: Path) -> None:
    out = tmp_path / "results" / "vqa.json"
    examples = [Example(prompt="<b>?", answer="é", images={"shown": Image.new("RGB", (4, 4), "red")})]
    results.write_results(result_of({"accuracy": 0.5}, examples), out, model={"path": "m"}, data={"source": "s"})
    content = json.loads(out.read_text(encoding="utf-8"))
    assert {"task", "metrics", "n", "seconds", "recipe", "model", "data", "software"} <= content.keys()
    assert {"torch", "transformers", "commit"} <= content["software"].keys()
    picture = out.parent / content["examples"][0]["images"]["shown"]
    with Image.open(picture) as image:
        assert image.size == (4, 4)
    assert content["examples"][0]["answer"] == "é"


def test_an_earlier_results_file_survives_one_that_cannot_be_written(tmp_path: Path) -> None:
    out = tmp_path / "vqa.json"
    results.write_results(result_of({"accuracy": 0.5}, []), out, model={}, data={})
    with pytest.raises(ValueError, match="JSON"):
        results.write_results(result_of({"accuracy": float("nan")}, []), out, model={}, data={})
    assert json.loads(out.read_text())["metrics"] == {"accuracy": 0.5}
    assert not list(tmp_path.glob("*.tmp"))


def test_pictures_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    out = tmp_path / "vqa.json"
    picture = Example(images={"shown": Image.new("RGB", (4, 4))})
    results.write_results(result_of({}, [picture, picture]), out, model={}, data={})
    results.write_results(result_of({}, [picture]), out, model={}, data={})
    assert len(list((tmp_path / "vqa_examples").iterdir())) == 1


@pytest.mark.parametrize("task", ["vqa", "caption", "t2i", "reconstruction"])
def test_every_task_runs_on_a_folder_of_pictures(task: str, model: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / f"{task}.json"
    config = EvaluationConfig(task=task, source="imagefolder", path=folder, split="train")
    content = run.run(model, config, out, quiet=True)
    assert content == json.loads(out.read_text())
    assert content["task"] == task and content["n"] == {"vqa": 1}.get(task, 3)
    assert content["model"] == {"path": "runs/fake/model", "sha256": "f" * 64}
    assert content["data"]["source"] == "imagefolder" and len(content["data"]["sha256"]) == 64
    assert content["command"].startswith(f"unimodal evaluate --model runs/fake/model --task {task}")
    assert not (out.parent / "judge").exists()


@pytest.mark.parametrize("split", [True, False], ids=["of its own", "the whole folder"])
def test_drawings_of_any_folder_are_judged_by_a_dual_encoder_of_its_training_split(
    split: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder without splits is trained on as a whole, which the results say."""
    pictures = tmp_path / "pictures"
    tiny_picture_folder(pictures / "train" if split else pictures, 24)
    if split:
        tiny_picture_folder(pictures / "test", 6)
    monkeypatch.setattr("unimodal.evaluation.dual_encoder.FEWEST", 20)
    monkeypatch.setitem(train_dual_encoder.__kwdefaults__ or {}, "steps", 2)
    out = tmp_path / "out" / "t2i.json"
    config = EvaluationConfig(task="t2i", source="imagefolder", path=pictures, split="test", limit=3)
    content = run.run(tiny_pipeline(), config, out, quiet=True)
    scores = {"caption_among_50", "caption_among_50_of_real_pictures", "caption_among_50_of_reconstructions"}
    assert scores < content["metrics"].keys() and "retrieval" not in content["metrics"]
    assert content["recipe"]["judge"]["real_pictures_held_out"] is split
    assert (out.parent / "judge" / "dual_encoder.safetensors").is_file() and not capsys.readouterr().out
    monkeypatch.setattr("unimodal.evaluation.dual_encoder.FEWEST", 100)
    (out.parent / "judge" / "dual_encoder.safetensors").unlink()
    content = run.run(tiny_pipeline(), config, out, quiet=True)
    assert "takes 100 captioned pictures for training, there are 24" in capsys.readouterr().out
    assert content["recipe"]["judge"] is None and "retrieval" in content["metrics"]


def test_settings_reach_the_model_and_the_recipe(model: Any, folder: Path, tmp_path: Path) -> None:
    sampling = Sampling(temperature=0.5, guidance=3.0, seed=9)
    config = EvaluationConfig(
        task="t2i", source="imagefolder", path=folder, split="train", limit=2, sampling=sampling, batch_size=7
    )
    content = run.run(model, config, tmp_path / "t2i.json", quiet=True)
    drawn = model.calls[0]
    assert (drawn["temperature"], drawn["guidance"], drawn["seed"], drawn["batch_size"]) == (0.5, 3.0, 9, 7)
    assert len(drawn["prompts"]) == 2
    assert content["recipe"]["guidance"] == 3.0 and content["recipe"]["sampling"]["temperature"] == 0.5
    assert "--limit 2 --temperature 0.5 --guidance 3.0 --seed 9" in content["command"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "singing"}, "unknown task 'singing'"),
        ({"limit": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_a_config_that_exists_is_valid(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**cast("dict[str, Any]", {"task": "vqa", "source": "easy_vqa"} | options))


def test_an_unknown_source_is_one_readable_line(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown source 'nowhere'"):
        run.run(model, EvaluationConfig(task="vqa", source="nowhere"), tmp_path / "x.json", quiet=True)


def test_nothing_in_evaluation_imports_lightning() -> None:
    files = Path(run.__file__).parent.rglob("*.py")
    assert not [file for file in files if "lightning" in file.read_text(encoding="utf-8")]
