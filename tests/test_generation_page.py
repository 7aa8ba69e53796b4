"""docs/generation.md and docs/flow.md: their examples run, on models that never learned anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.oracles.tiny import tiny_flow_pipeline, tiny_picture, tiny_pipeline

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "generation.md").read_text()


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_pipeline(max_length=200).save(tmp_path / "runs/demo/model")
    tiny_picture(0).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "generation.md", "exec"), names)
    assert {"document", "scores", "event"} <= set(names) or names["parts"].finish != "end"  # pyright: ignore


def test_the_prompt_lines_of_the_page_are_answered(tmp_path: Path) -> None:
    from unimodal.generation.prompt_file import read_prompts

    pipeline = tiny_pipeline(max_length=200)
    tiny_picture(0).save(tmp_path / "photo.png")
    lines = [line.strip() for line in PAGE.splitlines() if line.startswith('    {"')]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    requests = [line.request(pipeline) for line in read_prompts(tmp_path / "prompts.jsonl")]
    assert len(pipeline.answers(requests)) == len(lines) == 4


def test_the_examples_of_the_page_of_the_flow_branch_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_flow_pipeline(max_length=300).save(tmp_path / "runs/easy_vqa_flow/model")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "flow.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "flow.md", "exec"), names)
    assert {"picture", "edited", "answer"} <= set(names)
