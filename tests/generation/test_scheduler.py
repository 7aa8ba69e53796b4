"""The scheduler: requests come and go at any time, and each answer is that of its request alone."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.oracles.pictures import noise
from tests.oracles.tiny import tiny_flow_pipeline, tiny_pipeline
from unimodal.generation.batch import Batch
from unimodal.generation.engine import Engine
from unimodal.generation.flow_sampling import FlowSamplingConfig
from unimodal.generation.forward import EagerForward, Predicted, StaticForward
from unimodal.generation.painters.due import DueImages
from unimodal.generation.pipeline import Pipeline
from unimodal.generation.requests import Decoded, Request
from unimodal.generation.scheduler import Scheduler
from unimodal.generation.stepping import EAGER
from unimodal.model.cache import KVCache

PICTURES = [noise(16, 16, seed=seed) for seed in range(2)]
PROMPTS: list[Any] = [
    "a red circle",
    [PICTURES[0], "what color is it?"],
    [PICTURES[0], "is there a red square?"],
    ["a", PICTURES[1], "make it blue"],
]
SETTINGS: tuple[dict[str, Any], ...] = (
    {"mode": "text", "max_new_tokens": 9},
    {"mode": "image", "guidance": 3.0},
    {"mode": "mixed", "max_new_tokens": 24, "guidance": 2.0, "image_guidance": 1.5},
    {"mode": "mixed", "max_new_tokens": 30, "grammar": ["red", "blue", "a red circle"]},
)
PIPELINES = {
    "codes": tiny_pipeline,
    "latents": tiny_flow_pipeline,
    "latents and a ViT": lambda: tiny_flow_pipeline(vit=True),
}


@pytest.fixture(scope="module", params=list(PIPELINES))
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return PIPELINES[request.param]()


def requests(pipeline: Pipeline, count: int) -> list[Request]:
    """Prompts and settings of all kinds in turn."""
    few: dict[str, Any] = {"flow": FlowSamplingConfig(steps=2)} if pipeline.autoencoder else {}
    found: list[Request] = []
    for number in range(count):
        settings = SETTINGS[number % len(SETTINGS)]
        config = pipeline.decode_config(**settings, **few)
        found += pipeline.requests([PROMPTS[(number * 7 // 3) % len(PROMPTS)]], config, number)
    return found


def ids(decoded: Decoded) -> tuple[list[int], str]:
    return decoded.ids, decoded.finish


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_requests_that_join_at_any_step_are_answered_as_if_alone(pipeline: Pipeline, rows: int) -> None:
    asked, random = requests(pipeline, 16), Random(rows)
    scheduler, waiting = pipeline.engine.scheduler(rows=rows), list(range(len(asked)))
    numbers: dict[int, int] = {}
    answers: dict[int, Decoded] = {}
    pieces: dict[int, list[int]] = {}
    while waiting or not scheduler.idle:
        for _ in range(random.randrange(3) if not scheduler.idle else 1):
            if waiting:
                index = waiting.pop(0)
                numbers[scheduler.submit(asked[index])] = index
        for update in scheduler.step():
            pieces.setdefault(update.request, []).extend(update.ids)
            if update.decoded is not None:
                answers[numbers[update.request]] = update.decoded
    alone = [pipeline.engine.decode([request])[0] for request in asked]
    assert [ids(answers[index]) for index in range(len(asked))] == [ids(answer) for answer in alone]
    assert all(pieces[number] == answers[index].ids for number, index in numbers.items())


def test_cancelling_frees_a_row_at_once_and_changes_no_other_answer(pipeline: Pipeline) -> None:
    asked = requests(pipeline, 8)
    scheduler = pipeline.engine.scheduler(rows=4)
    numbers = [scheduler.submit(request) for request in asked]
    answers: dict[int, Decoded] = {}

    def step() -> None:
        answers.update({u.request: u.decoded for u in scheduler.step() if u.decoded is not None})

    for _ in range(3):
        step()
    decoding = next(number for number in scheduler.batch.numbers)
    queued = next(number for number in numbers if number not in (*scheduler.batch.numbers, *answers))
    before = len(scheduler.batch)
    scheduler.cancel(decoding)
    assert len(scheduler.batch) == before - 1 and decoding not in scheduler.batch.numbers
    scheduler.cancel(queued)
    while not scheduler.idle:
        step()
    assert set(answers) == set(numbers) - {decoding, queued}
    for number, answer in answers.items():
        assert ids(answer) == ids(pipeline.engine.decode([asked[number]])[0])


def test_a_request_that_is_unknown_or_answered_cannot_be_cancelled(pipeline: Pipeline) -> None:
    scheduler = pipeline.engine.scheduler()
    number = scheduler.submit(requests(pipeline, 1)[0])
    while not scheduler.idle:
        scheduler.step()
    for wrong in (number, 99):
        with pytest.raises(ValueError, match=f"request {wrong} is not being answered"):
            scheduler.cancel(wrong)
    assert scheduler.step() == [] and scheduler.idle


def test_the_cache_is_as_large_as_at_construction(pipeline: Pipeline) -> None:
    scheduler = pipeline.engine.scheduler(rows=2)
    slots = scheduler.batch.cache.slots
    for request in requests(pipeline, 6):
        scheduler.submit(request)
    while not scheduler.idle:
        scheduler.step()
    assert scheduler.batch.cache.slots == slots
    assert all(layer.keys.shape[2] == slots for layer in scheduler.batch.cache.layers)


def test_a_prefix_that_prompts_share_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of the flow branch too: its latents and codes stand in the prompt of an edit."""
    from unimodal.generation.prefill import Prefill

    pipeline, read = tiny_flow_pipeline(), []
    real = Prefill.pieces

    def counted(self: Prefill, first: int, pieces: Any) -> None:
        read.extend(len(piece) for piece in pieces)
        real(self, first, pieces)

    monkeypatch.setattr(Prefill, "pieces", counted)
    config = pipeline.decode_config("image", guidance=1.0, flow=FlowSamplingConfig(steps=1))
    prompts: list[Any] = [[PICTURES[0], f"make it {paint}"] for paint in ("red", "blue", "teal", "black")]
    answers = pipeline.engine.decode(pipeline.requests(prompts, config))
    lengths = [len(prompt) for prompt in (request.prompt for request in pipeline.requests(prompts, config))]
    assert sum(read) < sum(lengths), "four prompts cost less than the ids of each"
    assert len(answers) == 4 and all(len(answer.pictures) == 1 for answer in answers)


def test_painted_images_come_with_the_update_that_has_their_ids() -> None:
    pipeline = tiny_flow_pipeline()
    config = pipeline.decode_config("image", flow=FlowSamplingConfig(steps=2))
    scheduler: Scheduler = pipeline.engine.scheduler()
    scheduler.submit(pipeline.requests(["a red circle"], config)[0])
    updates = []
    while not scheduler.idle:
        updates += scheduler.step()
    assert len(updates[-1].pictures) == 1 and updates[-1].decoded is not None
    (picture,) = pipeline.finished([updates[-1].decoded])[0]
    assert isinstance(picture, Image.Image)


def test_rows_that_wait_for_a_painter_get_no_contexts_to_be_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guidance of codes has rows for them; a painter lays out its own when it draws, once an image."""
    pipeline, laid_out = tiny_flow_pipeline(), []
    real = DueImages.contexts

    def counted(self: DueImages, due: Any, free: int) -> Any:
        laid_out.append(len(due))
        return real(self, due, free)

    monkeypatch.setattr(DueImages, "contexts", counted)
    config = pipeline.decode_config(mode="image", guidance=3.0, flow=FlowSamplingConfig(steps=2))
    text = pipeline.decode_config(mode="text", max_new_tokens=9)
    asked = [*pipeline.requests([PROMPTS[0]] * 3, config), *pipeline.requests([PROMPTS[0]] * 3, text)]
    scheduler = pipeline.engine.scheduler(rows=6)
    for request in asked:
        scheduler.submit(request)
    drawn = 0
    while not scheduler.idle:
        updates = scheduler.step()
        drawn += sum(len(update.decoded.pictures) for update in updates if update.decoded is not None)
        assert all(row.role == 0 for row in scheduler.batch.rows)
    assert (drawn, laid_out) == (3, [3]), "images that are due together are drawn together"


class Counted:
    """Steps of a forward that are counted by how many rows they fed."""

    recordable, stepping = False, EAGER

    def __init__(self, pipeline: Pipeline) -> None:
        self.forward, self.rows = EagerForward(pipeline.model), list[int]()

    def __call__(self, tokens: Tensor, positions: Tensor, slots: Tensor, cache: KVCache, used: int) -> Predicted:
        self.rows.append(len(tokens))
        return self.forward(tokens, positions, slots, cache, used)


def test_rows_that_wait_for_a_painter_are_parked_and_their_places_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny_flow_pipeline()
    monkeypatch.setattr("unimodal.generation.scheduler.PAINT_AT_ONCE", 3)
    few = {"flow": FlowSamplingConfig(steps=2)}
    drawing = pipeline.requests(["a red circle"] * 2, pipeline.decode_config("image", **few), 0)
    config = pipeline.decode_config("text", max_new_tokens=9, constrained=False, **few)
    saying = [request for seed in range(3) for request in pipeline.requests(["what color is it?"], config, seed)]
    forward = Counted(pipeline)
    engine = Engine(pipeline.model, pipeline.token_space, forward, pipeline.engine.painter, pipeline.reading)
    scheduler = engine.scheduler(rows=3)
    for request in [*drawing, *saying]:
        scheduler.submit(request)
    scheduler.step()
    assert forward.rows == [3] and len(scheduler.batch) == 3 and len(scheduler.batch.parked) == 2
    scheduler.step()
    assert forward.rows == [3, 3] and len(scheduler.batch) == 5, "the parked rows were fed, or held the others up"
    answers: dict[int, Decoded] = {}
    while not scheduler.idle:
        answers |= {update.request: update.decoded for update in scheduler.step() if update.decoded}
    alone = [pipeline.engine.decode([request])[0] for request in [*drawing, *saying]]
    assert [ids(answers[number]) for number in range(5)] == [ids(answer) for answer in alone]


@pytest.mark.slow
def test_padding_of_static_steps_leaves_parked_rows_as_they_are() -> None:
    pipeline = tiny_flow_pipeline()
    asked = requests(pipeline, 12)
    static = StaticForward(pipeline.model, backend="eager")
    engine = Engine(pipeline.model, pipeline.token_space, static, pipeline.engine.painter, pipeline.reading)
    expected = pipeline.engine.decode(asked, rows=6)
    assert [ids(answer) for answer in engine.decode(asked, rows=6)] == [ids(answer) for answer in expected]


@pytest.mark.parametrize("tokens", [1, 14, 2048])
def test_images_that_are_drawn_in_several_parts_are_those_that_are_drawn_alone(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny_flow_pipeline()
    settings = {"guidance": 3.0, "image_guidance": 1.5, "flow": FlowSamplingConfig(steps=3, guidance_from=0.7)}
    asked = pipeline.requests(PROMPTS, pipeline.decode_config("image", **settings), 3)
    whole = [pipeline.engine.decode([request])[0] for request in asked]
    monkeypatch.setattr("unimodal.generation.painters.flow.TOKENS_AT_ONCE", tokens)
    for answer, expected in zip(pipeline.engine.decode(asked), whole, strict=True):
        assert ids(answer) == ids(expected)
        torch.testing.assert_close(answer.pictures, expected.pictures, rtol=1e-5, atol=1e-5)


def tiny_pipeline_scheduler(*, rows: int, drawings: int, texts: int) -> Scheduler:
    """With requests for drawings and then for texts."""
    pipeline = tiny_flow_pipeline()
    scheduler = pipeline.engine.scheduler(rows=rows)
    for request in drawing_and_saying(pipeline, drawings, texts):
        scheduler.submit(request)
    return scheduler


def drawing_and_saying(pipeline: Pipeline, drawings: int, texts: int) -> list[Request]:
    few = {"flow": FlowSamplingConfig(steps=2)}
    draw, say = (pipeline.decode_config(mode, max_new_tokens=9, **few) for mode in ("image", "text"))
    say = replace(say, constrained=False)
    asked = pipeline.requests(["a red circle"] * drawings, draw)
    return asked + pipeline.requests(["what color is it?"] * texts, say, 5)


def sizes_until_idle(scheduler: Scheduler) -> list[tuple[int, int]]:
    """Answers in the batch, and those of them that are parked, after each step."""
    sizes = []
    while not scheduler.idle:
        scheduler.step()
        sizes.append((len(scheduler.batch), len(scheduler.batch.parked)))
    return sizes


def test_no_more_rows_are_parked_than_were_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimodal.generation.scheduler.PAINT_AT_ONCE", 3)
    scheduler = tiny_pipeline_scheduler(rows=4, drawings=2, texts=6)
    sizes = sizes_until_idle(scheduler)
    assert max(parked for _, parked in sizes) == 2 and max(size for size, _ in sizes) == 4 + 2


def test_images_wait_for_others_while_requests_can_join() -> None:
    scheduler = tiny_pipeline_scheduler(rows=2, drawings=4, texts=0)
    drawn = []
    while not scheduler.idle:
        drawn.append(sum(bool(update.pictures) for update in scheduler.step()))
    assert drawn == [2, 2]


def test_an_image_does_not_wait_for_ever_for_answers_that_keep_moving(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a queue that never ends another request always moves."""
    monkeypatch.setattr("unimodal.generation.painters.due.PATIENCE", 5)
    scheduler = tiny_pipeline_scheduler(rows=4, drawings=1, texts=3)
    pipeline, steps = tiny_flow_pipeline(), 0
    while not any(update.request == 0 and update.decoded for update in scheduler.step()):
        for request in drawing_and_saying(pipeline, 0, 4 - len(scheduler.batch)):
            scheduler.submit(request)
        steps += 1
        assert steps < 20
    assert steps == 5


def test_the_host_syncs_once_a_step_while_the_same_rows_are_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = tiny_pipeline_scheduler(rows=4, drawings=1, texts=3)
    scheduler.step()
    syncs = []
    real = Batch.sync
    monkeypatch.setattr(Batch, "sync", lambda batch: (syncs.append(1), real(batch))[1])
    scheduler.step()
    assert scheduler.batch.parked == {0} and len(syncs) == 1


def test_a_request_may_be_cancelled_while_it_is_parked() -> None:
    pipeline = tiny_flow_pipeline()
    asked = drawing_and_saying(pipeline, 1, 2)
    scheduler = pipeline.engine.scheduler(rows=3)
    for request in asked:
        scheduler.submit(request)
    scheduler.step()
    assert scheduler.batch.parked == {0}
    scheduler.cancel(0)
    assert not scheduler.batch.parked and len(scheduler.batch) == 2
    answers: dict[int, Decoded] = {}
    while not scheduler.idle:
        answers |= {update.request: update.decoded for update in scheduler.step() if update.decoded}
    assert [ids(answers[number]) for number in (1, 2)] == [ids(a) for a in pipeline.engine.decode(asked[1:])]
