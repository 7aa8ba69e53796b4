"""Learning-rate schedules, point by point."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.oracles.tiny import tiny_shards
from tests.oracles.tiny_training import fit_arguments
from unimodal.training.cli import main
from unimodal.training.schedule import ScheduleConfig

DECAYS: tuple[Any, ...] = ("linear", "cosine", "exponential", "constant")


@pytest.mark.parametrize("decay", DECAYS)
def test_the_rate_rises_in_a_line_and_is_never_zero(decay: Any) -> None:
    schedule = ScheduleConfig(warmup_steps=10, decay=decay, decay_from=0.5)
    assert [schedule.factor(step, 100) for step in range(10)] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert schedule.factor(30, 100) == 1.0


@pytest.mark.parametrize(
    ("decay", "halfway", "end"),
    [("linear", 0.55, 0.1), ("cosine", 0.55, 0.1), ("exponential", math.sqrt(0.1), 0.1), ("constant", 1.0, 1.0)],
)
def test_the_rate_falls_to_its_floor(decay: Any, halfway: float, end: float) -> None:
    schedule = ScheduleConfig(warmup_steps=0, decay=decay, floor=0.1)
    assert schedule.factor(0, 1000) == pytest.approx(1.0)
    assert schedule.factor(500, 1000) == pytest.approx(halfway)
    assert schedule.factor(1000, 1000) == schedule.factor(5000, 1000) == pytest.approx(end)


@pytest.mark.parametrize("decay", DECAYS)
def test_after_the_warm_up_the_rate_never_rises(decay: Any) -> None:
    schedule = ScheduleConfig(warmup_steps=5, decay=decay, decay_from=0.2)
    rates = [schedule.factor(step, 60) for step in range(5, 80)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("decay", DECAYS)
def test_runs_of_no_or_one_step_have_a_rate(decay: Any) -> None:
    for total in (0, 1):
        assert 0 < ScheduleConfig(warmup_steps=1, decay=decay).factor(0, total) <= 1


@pytest.mark.parametrize("decay_from", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("decay", ["linear", "cosine", "exponential"])
def test_a_decay_that_begins_late_reaches_its_floor_all_the_same(decay: Any, decay_from: float) -> None:
    schedule = ScheduleConfig(warmup_steps=0, decay=decay, decay_from=decay_from, floor=0.1)
    begin = round(1000 * decay_from)
    assert schedule.factor(begin, 1000) == 1.0 > schedule.factor(begin + 1, 1000)
    early = ScheduleConfig(warmup_steps=0, decay=decay, floor=0.1)
    assert schedule.factor((begin + 1000) // 2, 1000) == pytest.approx(early.factor(500, 1000))
    assert schedule.factor(1000, 1000) == pytest.approx(0.1)


def test_a_rate_that_decays_over_no_number_of_steps_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without one it would stand at its floor from the first step on."""
    arguments = fit_arguments(tiny_shards(tmp_path / "shards"), tmp_path / "run", trainer__max_steps=-1)
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--trainer.max_time=00:00:10:00"])
    assert ended.value.code == 2
    assert "the learning rate decays over trainer.max_steps, which is not set" in capsys.readouterr().err
