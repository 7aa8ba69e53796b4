"""Benchmarks run, and print one JSON line as contracted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import data_path, decode, flow, train_step
from tests.oracles.passes import logits
from tests.oracles.tiny_training import ROOT
from tokenizers_vq.layout import FixedLayout
from unimodal.generation.forward import EagerForward

SMALL = "--dim 64 --layers 1 --hidden 96 --rows 4 --rounds 1".split()


@pytest.fixture(autouse=True)
def _one_small_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(train_step, "compile_blocks", lambda model: None)
    monkeypatch.setattr(train_step, "DOCUMENTS", 40)
    monkeypatch.setattr(train_step, "PRODUCTS", 2)
    yield


@pytest.mark.slow
def test_the_training_step_is_measured_against_the_matmul_rate(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_step.main(SMALL) == 0
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    result = json.loads(line)
    assert set(result) == {"name", "unit", "ours", "theirs", "ratio", "runs", "device", "versions"}
    assert result["name"] == "train_share_of_matmul" and result["runs"] == 1
    assert result["ratio"] == pytest.approx(result["ours"] / result["theirs"])
    assert 0 < result["ratio"] < 1
    assert "eager step" in printed.err and "compiled step" in printed.err and "without padding" in printed.err


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_a_benchmark_runs_as_a_file(script: Path) -> None:
    """As `make bench` runs it, from any folder."""
    done = subprocess.run([sys.executable, script, "--help"], cwd="/", capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr


def test_the_flow_branch_leaves_discrete_training_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert flow.main([*SMALL, "--eager"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["name"] == "discrete_unchanged" and result["largest_loss_difference"] == 0
    assert result["ratio"] == pytest.approx(result["theirs"] / result["ours"])


@pytest.mark.slow
def test_the_profile_tells_where_all_of_the_time_goes(capsys: pytest.CaptureFixture[str]) -> None:
    train_step.main([*SMALL, "--profile"])
    rows = [line.split("%  ") for line in capsys.readouterr().err.splitlines() if "%  " in line]
    shares = {name: float(share) for share, name in rows}
    assert {"matmul", "attention", "elementwise and the rest", "optimizer", "data"} <= set(shares)
    assert sum(shares.values()) == pytest.approx(100, abs=1)
    assert min(shares["matmul"], shares["attention"], shares["optimizer"]) > 0


def test_synthetic_documents_are_as_long_as_the_real_ones_and_fit_the_default_row() -> None:
    data = train_step.Data.make(length=160, rows=4)
    assert data.full > 0.8 and data.seconds > 0
    shown = torch.stack([batch.branches.amax() for batch in data.batches])
    assert shown.max() == 8


@pytest.mark.slow
def test_the_data_path_prints_a_line_for_each_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    assert data_path.main(["--documents", "200", "--pictures", "256", "--runs", "1"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = {"read", "reader_packer", "packing_efficiency", "packer", "tokenize_share"}
    assert {line["name"] for line in lines} == names
    fields = {"name", "unit", "ours", "theirs", "ratio", "runs", "device", "versions"}
    assert all(fields <= set(line) and line["ratio"] > 0 for line in lines)
    assert all(0.9 < line["ours"] <= 1 for line in lines if line["name"] == "packing_efficiency")


def test_greedy_first_fit_puts_each_length_in_the_first_row_with_room() -> None:
    assert data_path.first_fit([6, 7, 3, 4], 10) == [[0, 2], [1], [3]]


@pytest.fixture
def _small_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    small_trunk = {"dim": 24, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 0, "hidden_dim": 16}
    shape = replace(decode.SHAPE, trunk=replace(decode.TRUNK, **small_trunk))
    layout = FixedLayout(rows=2, columns=2)
    small = {"LAYOUT": layout, "SPACE": replace(decode.SPACE, layout=layout), "SHAPE": shape}
    for name, value in {**small, "TEXT": 4, "QUEUE": 10, "READ": 4096, "READS": 2}.items():
        monkeypatch.setattr(decode, name, value)
    monkeypatch.setattr(decode, "compiled_forward", lambda _, ready: EagerForward(ready))


@pytest.mark.slow
@pytest.mark.usefixtures("_small_decode")
def test_decoding_prints_a_line_for_each_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    decode.main(["--runs", "1"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == list(decode.NAMES)
    for line in lines:
        assert set(line) == {"name", "unit", "ours", "theirs", "ratio", "runs", "device", "versions"}
        assert line["ratio"] == pytest.approx(line["ours"] / line["theirs"])


@pytest.mark.usefixtures("_small_decode")
def test_both_engines_of_the_decoding_benchmark_hold_the_same_function() -> None:
    model = decode.Model.make(torch.float32)
    ids = torch.randint(decode.SPACE.vocab_size, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(logits(model.engine.model, ids), model.llama(ids).logits, rtol=1e-4, atol=1e-4)
