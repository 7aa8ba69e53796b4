"""A run takes bfloat16 only where the machine multiplies it fast, and what a config says goes first."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import fit_arguments
from unimodal.training import precision as precision_of
from unimodal.training.cli import run
from unimodal.training.precision import matmul_dtype, trainer_precision


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"amx_bf16": True}, "bf16-mixed"), ({"avx512_bf16": True}, "bf16-mixed"), ({"avx2": True}, "32-true")],
)
def test_a_cpu_without_units_for_bfloat16_trains_in_float32(
    capabilities: dict[str, bool], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(precision_of, "bfloat16_speedup", lambda: 2.0)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert trainer_precision("cpu") == precision
    assert matmul_dtype(torch.device("cpu")) == (torch.bfloat16 if precision == "bf16-mixed" else torch.float32)


def test_units_that_are_slower_than_float32_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(precision_of, "bfloat16_speedup", lambda: 0.5)
    assert matmul_dtype(torch.device("cpu")) == torch.float32 and trainer_precision("cpu") == "32-true"


def test_the_speedup_is_that_of_products_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    precision_of.bfloat16_speedup.cache_clear()
    seconds = iter(itertools.accumulate(itertools.chain([0], itertools.cycle([3, 0, 1, 0]))))
    monkeypatch.setattr(precision_of.time, "perf_counter", lambda: next(seconds))  # 3 s in float32, 1 s in bfloat16
    assert precision_of.bfloat16_speedup() == 3.0
    precision_of.bfloat16_speedup.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("fast", [True, False])
def test_a_config_without_precision_gets_the_fast_one_and_a_stated_one_stays(
    fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": fast})
    monkeypatch.setattr(precision_of, "bfloat16_speedup", lambda: 2.0)
    shards = tiny_shards(tmp_path / "shards")
    arguments = fit_arguments(shards, tmp_path / "run", trainer__max_steps=1)
    silent = [argument for argument in arguments if not argument.startswith("--trainer.precision")]
    assert run(silent).trainer.precision == ("bf16-mixed" if fast else "32-true")
    assert run(arguments).trainer.precision == "32-true"
