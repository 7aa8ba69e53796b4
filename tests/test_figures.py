"""The figures that README quotes are the ones that commands wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(
    r"^\| (?P<title>[^|]+) \| (?P<demo>[^|]+) \| (?P<long>[^|]+) \| `(?P<file>\w+\.json)` `(?P<metric>\w+)` \|$"
)


def rows() -> list[dict[str, str]]:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    return [match.groupdict() for line in lines if (match := ROW.match(line))]


def test_the_table_of_figures_is_there() -> None:
    assert {row["metric"] for row in rows()} >= {"accuracy", "exact_match", "psnr", "malformed", "image_blind_accuracy"}


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row['file']}-{row['metric']}")
@pytest.mark.parametrize(("column", "folder"), [("demo", "demo"), ("long", "easy_vqa")])
def test_a_quoted_figure_is_the_one_in_its_results_file(row: dict[str, str], column: str, folder: str) -> None:
    results = json.loads((ROOT / "docs" / "results" / folder / row["file"]).read_text(encoding="utf-8"))
    quoted = row[column].strip()
    decimals = len(quoted.partition(".")[2])
    assert quoted == f"{results['metrics'][row['metric']]:.{decimals}f}"
