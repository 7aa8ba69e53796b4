"""docs/formats.md says what is: the example makes a shard, and every row of the table of damages has its test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data_pipelines.shards import read_all
from tests.oracles.pictures import GRID_SPACE, SPACE
from tokenizers_vq.token_space import TokenSpace
from unimodal.cli import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "formats.md").read_text()


@pytest.mark.parametrize("chosen", [SPACE, GRID_SPACE])
def test_the_example_of_a_shard_written_by_hand_is_one(
    chosen: TokenSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = PAGE.split("### Writing a shard by hand")[1]
    (code,) = re.findall(r"```python\n(.*?)```", section.split("## Training data")[0], re.DOTALL)
    chosen.save(tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("runs/demo/model", "."), "formats.md", "exec"), {})
    space, documents = read_all(tmp_path)
    assert space == chosen and [document.key for document in documents] == ["first", "second", "third"]
    assert main(["inspect", "."]) == 0


def test_every_damage_in_the_table_has_a_test_of_that_name() -> None:
    named = re.findall(r"\| `(test_\w+\.py)::(test_\w+)` \|", PAGE.split("## Damage")[1])
    rows = [line for line in PAGE.split("## Damage")[1].split("\n## ")[0].splitlines() if line.startswith("| ")][1:]
    assert len(named) == len(rows) >= 15
    for file, test in named:
        (path,) = ROOT.glob(f"tests/**/{file}")
        assert f"def {test}(" in path.read_text(), f"{file} has no {test}"
