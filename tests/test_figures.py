"""The figures that README and docs/results.md quote are the ones that commands wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
ROW = re.compile(r"^\| [^|]+ \| (?P<value>[^|]+) \| `(?P<file>[\w/]+\.json)` `(?P<metric>\w+)` \|$")


def quoted_figures(pages: tuple[str, ...] = ("README.md", "docs/results.md")) -> list[tuple[str, str, str]]:
    """(file, metric, value) of every row of the tables."""
    lines = [line for page in pages for line in (ROOT / page).read_text(encoding="utf-8").splitlines()]
    return [(m["file"], m["metric"], m["value"].strip()) for line in lines if (m := ROW.match(line))]


def test_the_table_of_figures_is_there() -> None:
    metrics = {metric for _, metric, _ in quoted_figures()}
    assert metrics >= {"accuracy", "exact_match", "psnr", "malformed", "image_blind_accuracy", "judge_accuracy"}
    assert len(quoted_figures(("README.md",))) == 5


def test_sentences_of_the_readme_are_short() -> None:
    """Nine of ten have at most 30 words; tables and code left out."""
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [re.sub(r"^- ", "", line) for line in text.splitlines() if line and not line.startswith(("|", "#", "!"))]
    sentences = [each for line in " ".join(lines).split("  ") for each in re.split(r"(?<=[.:;]) ", line)]
    lengths = sorted(len(sentence.split()) for sentence in sentences)
    assert lengths[int(0.9 * len(lengths))] <= 30


@pytest.mark.parametrize(("file", "metric", "value"), quoted_figures())
def test_a_quoted_figure_is_the_one_in_its_results_file(file: str, metric: str, value: str) -> None:
    measured = json.loads((RESULTS / file).read_text(encoding="utf-8"))["metrics"][metric]
    assert value == f"{measured:.{len(value.partition('.')[2])}f}"
