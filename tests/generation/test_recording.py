"""Recorded steps: replayed on fixed memory they give the answers that steps one by one give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import Tensor

from tests.oracles.tiny import tiny_pipeline
from unimodal.generation.batch import Batch
from unimodal.generation.drafts.usual import usual_drafting
from unimodal.generation.forward import EagerForward, StaticForward
from unimodal.generation.recording import RecordedSteps, Steps
from unimodal.generation.requests import Decoded
from unimodal.model.config import MultiTokenConfig

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


def answers(settings: dict[str, Any], rows: int, drafts: int = 0) -> list[Decoded]:
    pipeline = tiny_pipeline(multi_token=MultiTokenConfig(depth=2)) if drafts else tiny_pipeline()
    pipeline.engine.drafting = usual_drafting(pipeline.model, drafts)
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


@pytest.mark.parametrize("settings", SETTINGS[:3], ids=["text", "image", "mixed"])
def test_steps_that_check_drafts_are_recorded_too(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    expected = answers(settings, 3, drafts=3)
    request.getfixturevalue("recorded")
    uploads = HostCopies(monkeypatch)
    assert [answer.ids for answer in answers(settings, 3, drafts=3)] == [answer.ids for answer in expected]
    assert Replayed.replays >= Replayed.made > 0 and not uploads.while_stepping


class HostCopies:
    """Tensors that a batch makes from numbers of the host while it steps: none may be part of a recorded step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.while_stepping, self.stepping = 0, False
        integers, advance = Batch.integers, Batch.advance

        def counted(batch: Batch, values: Sequence[Any]) -> Tensor:
            self.while_stepping += self.stepping
            return integers(batch, values)

        def stepping(batch: Batch) -> None:
            self.stepping = True
            advance(batch)
            self.stepping = False

        monkeypatch.setattr(Batch, "integers", counted)
        monkeypatch.setattr(Batch, "advance", stepping)


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
