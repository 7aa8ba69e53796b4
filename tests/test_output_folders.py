"""Places for results are looked at before the work, and nothing of a user's is overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data_pipelines.test_foreign_files import samples, write_tar
from tests.oracles.tiny import tiny_bundle, tiny_image_tokenizer, tiny_picture_folder, tiny_shards, tiny_text_tokenizer
from tests.oracles.tiny_training import ROOT, fit_arguments
from unimodal.cli import main
from unimodal.demo.tour import run as demo
from unimodal.training.cli import main as train


@pytest.fixture
def tools(tmp_path: Path) -> list[str]:
    """Tokenizers for `unimodal tokenize`."""
    tiny_image_tokenizer().save(tmp_path / "codes")
    tiny_text_tokenizer().save(tmp_path / "words")
    return ["--image-tokenizer", str(tmp_path / "codes"), "--text-tokenizer", str(tmp_path / "words")]


def digest(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(command) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("spelled", ["data", "data/", "data/../data", "link", "./data/."])
def test_shards_never_take_the_place_of_the_tars_they_are_made_from(
    spelled: str, tools: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "data" / "000000.tar", samples(12))
    (tmp_path / "link").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    before = digest(tmp_path / "data")
    line = refused(["tokenize", "--source", "webdataset", "--path", "data", "--out", spelled, *tools], capsys)
    assert "is read and would be written" in line and digest(tmp_path / "data") == before


@pytest.mark.parametrize("found", ["000000.tar", "text_tokenizer/tokenizer.json", "image_tokenizer/config.json"])
def test_shards_never_take_the_place_of_what_is_in_a_folder(
    found: str, tools: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tiny_picture_folder(tmp_path / "pictures", 6)
    (tmp_path / "out" / found).parent.mkdir(parents=True)
    (tmp_path / "out" / found).write_bytes(b"mine")
    command = ["tokenize", "--source", "imagefolder", "--path", str(pictures), "--out", str(tmp_path / "out"), *tools]
    assert "would be overwritten" in refused(command, capsys)
    assert (tmp_path / "out" / found).read_bytes() == b"mine"


def test_a_drawing_never_takes_the_place_of_its_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, out = tiny_bundle(tmp_path / "model"), tmp_path / "out"
    draw = ["generate", "--model", str(bundle), "--mode", "image", "--out", str(out)]
    assert main([*draw, "--prompt", "a red circle"]) == 0
    before = digest(out)
    line = refused([*draw, "--prompt", "make it blue", "--image", str(out / "000-0.png")], capsys)
    assert "is read and would be overwritten" in line and digest(out) == before
    assert main([*draw, "--prompt", "again"]) == 0, "its own earlier answers may be replaced"


def evaluation(bundle: Path, pictures: Path, out: Path) -> list[str]:
    base = ["evaluate", "--model", str(bundle), "--task", "caption", "--source", "imagefolder"]
    return [*base, "--path", str(pictures), "--out", str(out)]


def test_results_are_refused_before_the_work_where_they_cannot_be_written_or_would_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, pictures = tiny_bundle(tmp_path / "model"), tiny_picture_folder(tmp_path / "pictures", 6)
    monkeypatch.setattr("unimodal.commands.evaluate.load", lambda path: pytest.fail("the model was opened first"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "r_examples").mkdir()
    (tmp_path / "r_examples" / "mine.txt").write_text("mine")
    before = digest(tmp_path)
    for out, reason in (
        ("folder", "is a folder: name a file"),
        ("file/r.json", "is not a folder"),
        ("model/config.json", "is there already and no results file"),
        ("pictures/metadata.jsonl", "is there already and no results file"),
        ("r.json", "holds mine.txt, which would be lost"),
    ):
        assert reason in refused(evaluation(bundle, pictures, tmp_path / out), capsys), out
    assert digest(tmp_path) == before


def test_results_may_be_written_anew(tmp_path: Path) -> None:
    bundle, pictures = tiny_bundle(tmp_path / "model"), tiny_picture_folder(tmp_path / "pictures", 6)
    for _ in range(2):
        assert main(evaluation(bundle, pictures, tmp_path / "new" / "r.json")) == 0
    assert json.loads((tmp_path / "new" / "r.json").read_text())["data"]["skipped"]["count"] == 0


def test_a_folder_without_the_right_to_write_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    access = os.access  # as a user has it who may not write there; root may write everywhere
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    line = refused(evaluation(tmp_path, tmp_path, tmp_path / "locked" / "r.json"), capsys)
    assert "no right to write" in line


def test_the_demo_clears_no_folder_but_its_own(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("mine")
    programs: dict[str, Any] = {"train.py": lambda arguments: 2, "unimodal": lambda arguments: 2}
    with pytest.raises(ValueError, match="holds model, which no demo made"):
        demo(tmp_path, programs)
    assert (tmp_path / "model" / "mine").read_text() == "mine"
    for _ in range(2):
        with pytest.raises(ValueError, match="the step 'train the image tokenizer' failed"):
            demo(tmp_path / "own", programs)


@pytest.mark.slow
def test_a_training_never_overwrites_what_it_reads_and_says_so_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, bundle = tiny_shards(tmp_path / "shards"), tiny_bundle(tmp_path / "model")
    (tmp_path / "file").write_text("x")
    (tmp_path / "hf").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "hf" / name).write_text("{}")
    before = digest(tmp_path)
    for options, reason in (
        ({"bundle__out": str(shards)}, "is read and would be written"),
        ({"model__start__bundle": str(bundle), "bundle__out": str(bundle)}, "is read and would be written"),
        ({"bundle__out": str(tmp_path / "file")}, "is not a folder"),
        ({"bundle__out": str(tmp_path / "hf")}, "holds other things than an earlier result, a model without"),
        ({"bundle__out": str(shards.with_name("shards-pictures"))}, "holds other things than an earlier result"),
        ({"trainer__default_root_dir": str(tmp_path / "file")}, "is not a folder"),
        ({"trainer__default_root_dir": str(tmp_path / "file" / "below")}, "is not a folder"),
        ({"trainer__val_check_interval": 0}, "trainer.val_check_interval is above 0"),
        ({"trainer__accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches is above 0"),
        ({"trainer__accelerator": "gpu"}, "gpu"),
        ({"trainer__strategy": "nonsense"}, "under ddp or sharded, not under nonsense"),
        ({"trainer__strategy": "fsdp"}, "training runs on one device, under ddp or sharded, not under fsdp"),
        ({"trainer__strategy": "ModelParallelStrategy"}, "not under"),
    ):
        chosen: dict[str, str | float] = {"trainer__max_steps": 1, **options}
        with pytest.raises(SystemExit) as ended:
            train(fit_arguments(shards, tmp_path / "run", **chosen))
        err = capsys.readouterr().err
        assert ended.value.code == 2 and reason in err and "Traceback" not in err, (options, err)
    assert digest(tmp_path) == before


# -- prompt files


def predict(bundle: Path, prompts: Path, out: Path) -> int:
    data = ["--data", "PromptFile", "--data.path", str(prompts), "--data.out", str(out)]
    try:
        train(["predict", "--model", "Answerer", "--model.bundle", str(bundle), *data, "--trainer.accelerator", "cpu"])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"prompt": "another"}, "prompt, pictures, settings or seed of '000000' were others"),
        ({"seed": 5}, "prompt, pictures, settings or seed of '000000' were others"),
        ({"temperature": 0.5}, "prompt, pictures, settings or seed of '000000' were others"),
        ({"id": "other"}, "answer '000000' has no prompt now"),
    ],
)
def test_answers_of_another_job_are_refused_by_name(
    changed: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out, row = tiny_bundle(tmp_path / "model"), tmp_path / "out", {"prompt": "one", "mode": "text"}
    row |= {"choices": ["first", "second"]}
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps(row))
    assert predict(bundle, prompts, out) == predict(bundle, prompts, out) == 0
    before = digest(out)
    prompts.write_text(json.dumps(row | changed))
    assert predict(bundle, prompts, out) == 2
    assert reason in capsys.readouterr().err and digest(out) == before


def test_answers_of_another_model_or_about_another_picture_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out, prompts = tiny_bundle(tmp_path / "model"), tmp_path / "out", tmp_path / "p.jsonl"
    Image.new("RGB", (8, 8), "red").save(tmp_path / "p.png")
    prompts.write_text(json.dumps({"prompt": [{"image": "p.png"}, "what?"], "mode": "text", "choices": ["a"]}))
    assert predict(bundle, prompts, out) == 0
    assert predict(tiny_bundle(tmp_path / "other", hidden_dim=40), prompts, out) == 2
    assert "answer '000000' is another model's" in capsys.readouterr().err
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "p.png")
    assert predict(bundle, prompts, out) == 2
    assert "prompt, pictures, settings or seed of '000000' were others" in capsys.readouterr().err


def test_a_drawn_answer_never_takes_the_place_of_a_picture_of_a_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_bundle(tmp_path / "model")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "000000-0.png")
    before = (tmp_path / "000000-0.png").read_bytes()
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": [{"image": "000000-0.png"}, "bluer"], "mode": "image"}))
    assert predict(bundle, tmp_path / "p.jsonl", tmp_path) == 2
    assert "is read and would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "000000-0.png").read_bytes() == before


# -- Ctrl-C


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_interrupted_says_so_in_one_line(
    stop: signal.Signals, tools: list[str], tmp_path: Path
) -> None:
    pictures = tiny_picture_folder(tmp_path / "pictures", 24)
    command = [sys.executable, "-m", "unimodal", "tokenize", "--source", "imagefolder", "--path", str(pictures)]
    command += ["--out", str(tmp_path / "out"), "--copies", "5000", "--augment", "place", *tools]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)
    deadline = time.monotonic() + 600
    while not (tmp_path / "out" / "parts").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(stop)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 128 + stop and "Traceback" not in err, err
    assert err.strip().splitlines()[-1] == "unimodal tokenize: interrupted; the same command resumes where it stopped"
