"""Devices by name: what is not there is one line, and everything of a bundle is on one device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import unimodal
from tests.oracles.tiny import tiny_bundle
from unimodal.cli import main
from unimodal.devices import usable_device

SMALL = """
import sys
sys.argv = ["x"]
from {module} import {name}
try:
    {name}({arguments})
except SystemExit:
    pass
import torch
torch.set_num_threads(2)
numbers = torch.full((200_000,), 1e-20)
print(int(((numbers * numbers) != 0).sum()))
"""


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("unimodal.cli", "main", "['inspect', '/nowhere']"),
        ("unimodal.training.cli", "main", "['fit', '--config', '/nowhere']"),
    ],
)
def test_numbers_too_small_for_float32_are_0_in_all_threads_of_a_command(
    module: str, name: str, arguments: str
) -> None:
    program = SMALL.format(module=module, name=name, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "0", done.stderr[-500:]


def test_without_a_name_the_first_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_device("cpu") == torch.device("cpu")
    for there, kind in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert usable_device().type == kind


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(tiny_bundle(tmp_path / "model"))
    common = ["--model", bundle, "--device", name, "--out"]
    evaluation = ["evaluate", "--task", "vqa", "--source", "easy_vqa", *common, str(tmp_path / "r.json")]
    for command in (["generate", "--prompt", "a", *common, str(tmp_path / "g")], evaluation):
        assert main(command) == 2
        error = capsys.readouterr().err.strip()
        assert name in error and "device" in error and len(error.splitlines()) == 1
    with pytest.raises(ValueError, match="device"):
        unimodal.load(bundle, device=name)


def test_an_evaluation_takes_a_device_and_a_type_of_weights(tmp_path: Path) -> None:
    bundle = str(tiny_bundle(tmp_path / "model"))
    out = tmp_path / "r.json"
    chosen = ["--device", "cpu", "--dtype", "bfloat16", "--limit", "3"]
    evaluation = ["evaluate", "--task", "vqa", "--source", "easy_vqa", "--split", "test", "--model", bundle]
    assert main([*evaluation, *chosen, "--out", str(out)]) == 0
    assert json.loads(out.read_text())["n"] >= 3
    model = unimodal.load(bundle, device="cpu", dtype=torch.bfloat16)
    assert model.image_tokenizer is not None
    assert model.model.dtype == torch.bfloat16 and model.image_tokenizer.device == model.model.device
