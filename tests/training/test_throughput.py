"""What a run logs of its speed: tokens, operations by hand, waiting, rates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_pipelines.batch import collate
from data_pipelines.outline import Outline, Run, single
from tests.oracles.tiny import tiny_model, tiny_shards, tiny_space
from tests.oracles.tiny_training import fit_arguments, logged
from unimodal.model.masks import dense_mask
from unimodal.training.callbacks.throughput import Throughput, batch_flops
from unimodal.training.cli import run

SPACE = tiny_space()


def sequence(trunk: int, branches: tuple[int, ...]) -> Outline:
    ids = torch.arange(64).numpy() % SPACE.vocab_size
    blocks = tuple((Run(ids[:length], 1.0),) for length in branches)
    return Outline((single(SPACE.specials.bos, 0), Run(ids[: trunk - 1], 1.0)), blocks, branched=len(branches) > 1)


@pytest.mark.parametrize(
    "rows",
    [[[(5, ()), (9, ())], [(7, ())]], [[(6, (3, 4, 5)), (4, ())], [(3, (2, 8))]], [[], [(2, (2, 2))]]],
    ids=["plain", "branches", "padding"],
)
def test_pairs_are_those_that_the_mask_allows(rows: list[list[tuple[int, tuple[int, ...]]]]) -> None:
    batch = collate([[sequence(*one).build() for one in row] for row in rows], 40, SPACE)
    mask = dense_mask(batch.documents, batch.branches)[:, 0] & (batch.documents >= 0)[:, :, None]
    assert batch.facts.num_pairs == int(mask.sum())


def test_operations_are_counted_as_by_hand() -> None:
    model = tiny_model()  # 2 layers, dim 16, 2 heads of 8, 1 of keys, hidden 24
    batch = collate([[sequence(5, ()).build(), sequence(9, ()).build()]], 24, SPACE)
    norms = 2 * (2 * 16 + (2 + 1) * 8 * 2) + 16
    matrices = 2 * (16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24)
    counted = int((batch.facts.counted.weights > 0).sum())
    head = 24 * 16 * len(batch.facts.counted.index)
    assert len(batch.facts.counted.index) >= counted
    expected = 6 * ((matrices + norms) * 14 + head) + 12 * 2 * 16 * (5 * 6 // 2 + 9 * 10 // 2)
    assert batch_flops(model, batch) == expected


@pytest.mark.slow
def test_a_run_logs_its_speed_and_rates(tmp_path: Path) -> None:
    shards = tiny_shards(tmp_path / "shards")
    run([*fit_arguments(shards, tmp_path / "run", trainer__max_steps=4), "--throughput.peak_tflops=0.001"])
    figures = {name: logged(tmp_path / "run", f"train/{name}") for name in ("tokens_per_second", "tflops", "mfu")}
    assert all(len(values) >= 3 and all(float(value) > 0 for value in values.values()) for values in figures.values())
    for step, share in figures["mfu"].items():
        assert float(share) == pytest.approx(float(figures["tflops"][step]) / 0.001)
    assert all(0 <= float(share) <= 1 for share in logged(tmp_path / "run", "train/data_wait").values())
    rates = [float(rate) for rate in logged(tmp_path / "run", "lr/matrices").values()]
    assert rates[0] < max(rates)
    with pytest.raises(ValueError, match="above 0"):
        Throughput(peak_tflops=0)
