"""Benchmarks run, and print one JSON line as contracted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks import train_step

SMALL = "--dim 64 --layers 1 --hidden 96 --rows 4 --rounds 1".split()


@pytest.fixture(autouse=True)
def _one_small_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    monkeypatch.setattr(train_step, "compiled", as_it_is)
    monkeypatch.setattr(train_step, "DOCUMENTS", 40)
    monkeypatch.setattr(train_step, "PRODUCTS", 2)
    yield


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
