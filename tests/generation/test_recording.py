"""Recorded steps: replayed on fixed memory they give the answers that steps one by one give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.oracles.tiny import tiny_pipeline
from unimodal.generation.batch import Batch
from unimodal.generation.forward import EagerForward, StaticForward
from unimodal.generation.recording import RecordedSteps, Steps
from unimodal.generation.requests import Decoded

SETTINGS: tuple[dict[str, Any], ...] = (
    {"mode": "text", "max_new_tokens": 40},
    {"mode": "image", "guidance": 3.0, "max_new_tokens": 40},
    {"mode": "mixed", "max_new_tokens": 44, "guidance": 2.0, "image_guidance": 1.5},
    {"mode": "mixed", "max_new_tokens": 30, "grammar": ["red", "blue", "a red circle"]},
)


class Replayed:
    """Stands for a CUDA graph: does the work on each replay, and none when it is recorded."""

    made = 0
    replays = 0

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        Replayed.made += 1

    def replay(self) -> None:
        self.work()
        Replayed.replays += 1


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch records its steps."""
    monkeypatch.setattr(EagerForward, "recordable", True)
    monkeypatch.setattr("unimodal.generation.batch.RecordedSteps", lambda: RecordedSteps(Replayed))
    monkeypatch.setattr("unimodal.generation.recording.WARM_UP", 2)
    Replayed.made = Replayed.replays = 0


def answers(settings: dict[str, Any], rows: int) -> list[Decoded]:
    pipeline = tiny_pipeline()
    requests = [
        pipeline.requests([text], pipeline.decode_config(**settings), seed)[0] for seed, text in enumerate("abcde")
    ]
    return pipeline.engine.decode(requests, rows=rows, sync_every=4)


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("settings", SETTINGS, ids=["text", "image", "mixed", "grammar"])
def test_answers_are_those_of_steps_one_by_one(
    settings: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    expected = answers(settings, rows)
    request.getfixturevalue("recorded")
    assert answers(settings, rows) == expected
    assert (Replayed.made > 0) == ("grammar" not in settings) and Replayed.replays >= Replayed.made


def test_one_arrangement_of_rows_is_recorded_once_after_a_few_steps(recorded: None) -> None:
    pipeline = tiny_pipeline()
    (request,) = pipeline.requests(["a"], pipeline.decode_config(mode="text", max_new_tokens=40), 0)
    scheduler = pipeline.engine.scheduler(rows=1, sync_every=1)
    scheduler.submit(request)
    steps = 0
    while not scheduler.idle:
        scheduler.step()
        steps += 1
    assert steps > 2 and (Replayed.made, Replayed.replays) == (1, steps - 2)


def test_steps_of_a_gpu_are_recorded_and_others_not() -> None:
    pipeline = tiny_pipeline()
    static, limits = StaticForward(pipeline.model, backend="eager"), pipeline.engine._limits([])
    assert not static.recordable, "on a CPU"
    assert type(Batch(pipeline.model, pipeline.token_space, limits, static).steps) is Steps
    static.recordable = True
    assert type(Batch(pipeline.model, pipeline.token_space, limits, static).steps) is RecordedSteps
