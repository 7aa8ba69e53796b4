"""README's five commands for your own pictures, typed one after the other; only the steps of training are fewer."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.oracles.pages import shell_lines
from tests.oracles.tiny import tiny_picture_folder
from tests.oracles.tiny_training import ROOT
from unimodal.cli import main
from unimodal.training.cli import main as train

FEW = "--trainer.max_steps=2 --trainer.limit_val_batches=0 --trainer.accelerator=cpu --samples.every=0".split()
SMALL = {"tokenizer": ["--data.batch_size=4"], "run": ["--data.stream.rows=2", "--model.compile=false"]}


def typed(line: str) -> None:
    """Run a line in this process."""
    program, *words = shlex.split(line)
    if program == "unimodal":
        assert main(words) == 0
    else:
        assert (program, words[0]) == ("python", "train.py")
        [kind] = [kind for kind in SMALL if f"configs/{kind}/" in line]
        train([*words[1:], *FEW, *SMALL[kind]])


@pytest.mark.slow
def test_the_five_commands_of_the_readme_work_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line for line in shell_lines(ROOT / "README.md") if "runs/mine" in line]
    assert [line.split()[1] for line in lines] == ["train.py", "tokenize", "train.py", "generate", "evaluate"]
    tiny_picture_folder(tmp_path / "pictures")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for line in lines:
        typed(line)
    [drawn] = (tmp_path / "runs/mine/drawn").glob("*.png")
    assert Image.open(drawn).size == (64, 64)
    assert json.loads((tmp_path / "runs/mine/caption.json").read_text())["n"] == 24
