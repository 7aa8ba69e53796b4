"""Prompt files: every line is answered once, and a run that was cut off goes on to the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.oracles.tiny import tiny_bundle, tiny_flow_pipeline, tiny_picture
from unimodal.training.cli import main as train

SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 2}, "image": {"type": "image"}}}
ROWS: list[dict[str, Any]] = [
    {"prompt": "a red circle", "mode": "image", "guidance": 2.0},
    {"id": "asked", "prompt": [{"image": "p.png"}, "is it red?"], "mode": "text", "choices": ["yes", "no"], "seed": 7},
    {"prompt": ["red", {"answer": ["a red circle", {"image": "p.png"}]}, "blue"], "max_new_tokens": 12},
    {"prompt": "a", "json_schema": SCHEMA, "max_new_tokens": 32},
]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    tiny_picture(0).save(tmp_path / "p.png")
    return tiny_bundle(tmp_path / "model")


def write(folder: Path, rows: list[Any]) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def predict(bundle: Path, prompts: Path, out: Path, *more: str) -> None:
    module = ["--model", "Answerer", "--model.bundle", str(bundle)]
    data = ["--data", "PromptFile", "--data.path", str(prompts), "--data.out", str(out)]
    train(["predict", *module, *data, "--trainer.accelerator", "cpu", *more])


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_every_line_gets_its_answer_with_its_own_settings(bundle: Path, tmp_path: Path) -> None:
    predict(bundle, write(tmp_path, ROWS), tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["000000", "asked", "000002", "000003"]
    assert rows[0]["answer"] == [{"image": "000000-0.png"}] and (tmp_path / "out/000000-0.png").is_file()
    assert rows[1]["answer"] in (["yes"], ["no"]) and rows[1]["seed"] == 7
    assert [type(part) for part in rows[3]["answer"]] == [str, dict, str]


@pytest.mark.slow
def test_drafts_change_no_file(bundle: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path, ROWS)
    predict(bundle, prompts, tmp_path / "plain")
    for drafts in ("3", "auto"):
        predict(bundle, prompts, tmp_path / drafts, f"--model.drafts={drafts}")
        assert files(tmp_path / drafts) == files(tmp_path / "plain")
    with pytest.raises(SystemExit) as end:
        predict(bundle, prompts, tmp_path / "wrong", "--model.drafts=-1")
    assert end.value.code == 2


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on_to_the_same_files(bundle: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path, ROWS)
    predict(bundle, prompts, tmp_path / "whole")
    predict(bundle, write(tmp_path, ROWS[:2]), tmp_path / "cut")
    answers = tmp_path / "cut/answers.jsonl"
    lines = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(lines[1] + lines[0][:20])
    predict(bundle, write(tmp_path, ROWS), tmp_path / "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    predict(bundle, prompts, tmp_path / "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_answers_with_odd_line_ends_are_brought_into_order_too(bundle: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "mode": "text", "choices": ["x\u2028y\x85z"]}, *ROWS[:2]]
    predict(bundle, write(tmp_path, rows), tmp_path / "out")
    found = (tmp_path / "out/answers.jsonl").read_bytes().splitlines()
    assert [json.loads(row)["id"] for row in found] == ["000000", "000001", "asked"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "prompts.jsonl line 2: not JSON"),
        ({"promt": "a"}, "prompts.jsonl line 2: a line is an object with a prompt"),
        ({"prompt": []}, "line 2: a line is an object with a prompt"),
        ({"prompt": "a", "heat": 1}, "line 2: no setting is called 'heat'; there are aspect_ratio, choices"),
        ({"prompt": "a", "temperature": -1}, "line 2: the temperature is a number from 0 to 10000, got -1"),
        ({"prompt": "a", "temperature": "hot"}, "line 2: "),
        ({"prompt": "a", "choices": ["a"], "regex": "b"}, "line 2: an answer follows one grammar"),
        ({"prompt": "a", "json_schema": {"type": "nothing"}}, "line 2: not a usable JSONSchema"),
        ({"prompt": [{"image": "none.png"}]}, "none.png is not a file"),
        ({"prompt": [{"image": "prompts.jsonl"}]}, "line 2: "),
        ({"prompt": [3]}, "line 2: a prompt is made of strings"),
        ({"prompt": "a", "id": "../a"}, "line 2: an id names files"),
        ({"prompt": "a", "id": "000000"}, "line 2: id '000000' is that of"),
        ({"prompt": "a", "seed": "x"}, "line 2: a seed is a whole number"),
        ({"prompt": "a", "seed": 10**30}, "line 2: a seed is a whole number"),
        ({"prompt": "a", "regex": 5}, "line 2: not a usable Regex"),
        ({"prompt": "a", "max_new_tokens": 2.5}, "line 2: max_new_tokens is a whole number"),
        ({"prompt": "a", "id": "a" * 101}, "line 2: an id names files"),
        ("[" * 50_000, "line 2: not JSON"),
        ({"prompt": "what " * 100}, "line 2: a prompt of"),
    ],
)
def test_a_line_that_cannot_be_answered_is_named_in_one_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Any, reason: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        predict(bundle, write(tmp_path, [ROWS[0], row]), tmp_path / "out")
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and reason in last and last.startswith("train.py: ")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "aspect_ratio": 2.0}, "no other size"),
        ({"prompt": [{"image": "p.png"}, "a" * 47], "max_new_tokens": 6}, "line 2: a prompt of 61 tokens, latents"),
    ],
)
def test_what_a_model_with_the_flow_branch_cannot_answer_is_named_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Any, reason: str
) -> None:
    tiny_picture(0).save(tmp_path / "p.png")
    tiny_flow_pipeline(max_length=60).save(tmp_path / "model")
    with pytest.raises(SystemExit):
        predict(tmp_path / "model", write(tmp_path, [ROWS[0], row]), tmp_path / "out")
    assert reason in capsys.readouterr().err.strip().splitlines()[-1]


def test_files_that_are_no_prompts_or_no_answers_are_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/answers.jsonl").write_text("3\n")
    prompts = write(tmp_path, ROWS)
    for arguments, reason in (
        ((tmp_path / "none.jsonl", tmp_path / "out"), "none.jsonl is not a file"),
        ((tmp_path / "empty.jsonl", tmp_path / "out"), "holds no prompts"),
        ((prompts, tmp_path / "bad"), "holds a line that is no answer"),
    ):
        with pytest.raises(SystemExit):
            predict(bundle, *arguments)
        assert reason in capsys.readouterr().err.strip().splitlines()[-1]
