"""docs/generation.md: its lines of a prompt file are answered, by a model that never learned anything."""

from __future__ import annotations

from pathlib import Path

from tests.oracles.tiny import tiny_picture, tiny_pipeline
from unimodal.generation.prompt_file import read_prompts

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "generation.md").read_text()


def test_the_prompt_lines_of_the_page_are_answered(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(max_length=200)
    tiny_picture(0).save(tmp_path / "photo.png")
    lines = [line.strip() for line in PAGE.splitlines() if line.startswith('    {"')]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    requests = [line.request(pipeline) for line in read_prompts(tmp_path / "prompts.jsonl")]
    assert len(pipeline.answers(requests)) == len(lines) == 4
