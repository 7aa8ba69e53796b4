"""Weights that cannot be written are an OSError with the file's name, wherever weights are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.oracles.tiny import tiny_model, tiny_space
from tests.oracles.tiny_training import ROOT
from tokenizers_vq.weights_file import write_weights
from unimodal.model.checkpoint import save_model

PACKAGES = ("unimodal", "tokenizers_vq", "data_pipelines")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_weights({"a": torch.arange(3.0)}, tmp_path / "a.safetensors", {"kind": "test"})
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]


def test_a_place_that_takes_no_file_is_named(tmp_path: Path) -> None:
    """safetensors has an error of its own there, which is no OSError and would end a training with a traceback."""
    with pytest.raises(OSError, match=r"a\.safetensors cannot be written: .*No such file"):
        write_weights({"a": torch.ones(1)}, tmp_path / "missing" / "a.safetensors")
    (tmp_path / "model" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(OSError, match=r"model\.safetensors cannot be written"):
        save_model(tiny_model(dtype=torch.float32), tiny_space(), tmp_path / "model")


def test_nothing_writes_weights_around_it() -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert [path.name for path in paths if "save_file(" in path.read_text()] == ["weights_file.py"]
