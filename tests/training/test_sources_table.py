"""The table of sources: shares of draws and tokens, and epochs, as arithmetic has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.datamodule import FolderTotals
from data_pipelines.mixture import MixtureConfig
from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import fit_arguments
from unimodal.training.callbacks.sources import shares
from unimodal.training.cli import run

LONG = FolderTotals(name="long", documents=10, text_tokens=600, image_tokens=400)
SHORT = FolderTotals(name="short", documents=40, text_tokens=400, image_tokens=0)


def test_without_a_mixture_every_document_has_one_turn() -> None:
    long, short = shares([LONG, SHORT], None, run_tokens=2800)
    assert (long.draws, short.draws) == (0.2, 0.8)
    assert long.tokens == pytest.approx(1000 / 1400) and short.tokens == pytest.approx(400 / 1400)
    assert long.epochs == pytest.approx(2) and short.epochs == pytest.approx(2)


def test_a_mixture_of_two_stages_counts_both() -> None:
    mixture = MixtureConfig(weights=(1, 0), second_weights=(1, 1), second_from=0.5)
    long, short = shares([LONG, SHORT], mixture, run_tokens=775)
    assert (long.draws, short.draws) == (0.75, 0.25)
    assert long.epochs == pytest.approx(0.75) and short.epochs == pytest.approx(10 * 0.25 / 40)
    assert long.tokens == pytest.approx(75 / 77.5)


def test_a_run_prints_the_table_and_logs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    shards = tiny_shards(tmp_path / "shards")
    run(fit_arguments(shards, tmp_path / "run", trainer__max_steps=2))
    printed = capsys.readouterr().out
    assert "image tokens" in printed and "100.0%" in printed
    logged = (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").read_text()
    assert "image_tokens" in logged.splitlines()[0]


def test_a_run_ends_where_a_mixture_that_is_to_stop_runs_dry_and_leaves_its_bundle(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path / "shards")
    mixture = {"data__mixture__weights": "[1.0]", "data__mixture__when_dry": "stop"}
    trainer = run(fit_arguments(shards, tmp_path / "run", trainer__max_steps=1000, **mixture)).trainer
    assert 0 < trainer.global_step < 40
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
