"""Answers of a model that sees pictures through a ViT: text and drawings, alone and in batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.batch import collate
from data_pipelines.images import join_patches
from data_pipelines.outline import Outline
from tests.oracles.pictures import noise
from tests.oracles.tiny import tiny_flow_pipeline
from unimodal.generation.flow_context import Context, ContextCache, clean_media, read_prompt, shown_pictures
from unimodal.generation.flow_engine import FlowEngine
from unimodal.generation.flow_sampling import FlowSamplingConfig
from unimodal.generation.pipeline import Pipeline, load
from unimodal.model.masks import dense_mask

FEW = FlowSamplingConfig(steps=3)
PICTURES = [noise(16, 16, seed=0), noise(24, 12, seed=1), noise(9, 30, seed=2)]
PROMPTS: list[Any] = [
    "a red circle",
    [PICTURES[0], "make it blue"],
    ["a", PICTURES[1], "b", PICTURES[2]],
    ["a red circle", [PICTURES[1], "yes"], "now a blue one"],
]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny_flow_pipeline(vit=True)


@pytest.mark.parametrize("mode", ["text", "image", "mixed"])
def test_a_batch_answers_as_each_prompt_alone(pipeline: Pipeline, mode: Any) -> None:
    settings = {"mode": mode, "flow": FEW, "max_new_tokens": 30}
    together = pipeline.generate(PROMPTS, seed=7, **settings)
    alone = [pipeline.generate([prompt], seed=7 + i, **settings)[0] for i, prompt in enumerate(PROMPTS)]
    assert [a.ids for a in together] == [a.ids for a in alone]
    if mode == "text":
        assert all(isinstance(part, str) for answer in together for part in answer)
        assert pipeline.token_space.specials.boi not in [token for answer in together for token in answer.ids]


@pytest.mark.parametrize("mode", ["text", "mixed"])
def test_the_cache_gives_the_logits_of_the_whole_sequence(pipeline: Pipeline, mode: Any) -> None:
    requests = pipeline.requests(PROMPTS, pipeline.decode_config(mode))
    contexts = [read_prompt(r.prompt, shown_pictures(r, 4), pipeline.token_space) for r in requests]
    model, space = pipeline.model, pipeline.token_space
    with torch.inference_mode():
        found = ContextCache(model, space, contexts, 1).logits
        for row, context in enumerate(contexts):
            sequence = Outline((), (tuple(context.runs),)).build()
            batch = collate([[sequence]], len(sequence), space)
            mask = dense_mask(batch.documents, batch.branches, batch.spans)
            features = model(batch.tokens, batch.positions, mask, media=clean_media(batch, model))
            torch.testing.assert_close(found[row], model.token_head(features[0, -1]), rtol=1e-4, atol=1e-4)


def test_pictures_are_seen_in_their_own_shape_and_their_codes_are_not_read(pipeline: Pipeline) -> None:
    (request,) = pipeline.requests([PROMPTS[2]], pipeline.decode_config("mixed"))
    assert [pixels.shape for pixels in request.pixels] == [(12, 20, 3), (28, 8, 3)], "of 24x12 and 9x30 pixels"
    space = pipeline.token_space
    context = read_prompt(request.prompt, shown_pictures(request, 4), space)
    assert [run.media.name for run in context.runs if run.media] == ["latents", "patches"] * 2
    codes = {token for run in context.runs for token in run.ids.tolist() if token >= space.image_offset}
    assert codes == set()
    with torch.inference_mode():
        plain = ContextCache(pipeline.model, space, [context], 1).logits
        other = dataclasses.replace(request, pixels=[255 - request.pixels[0], *request.pixels[1:]])
        changed = read_prompt(request.prompt, shown_pictures(other, 4), space)
        assert (ContextCache(pipeline.model, space, [changed], 1).logits - plain).abs().max() > 1e-3


def test_what_was_drawn_is_seen_through_the_vit(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Context] = []
    real = ContextCache.__init__

    def kept(self: ContextCache, model: Any, space: Any, contexts: Any, room: int) -> None:
        read.append(Context(runs=list(contexts[0].runs)))
        real(self, model, space, contexts, room)

    monkeypatch.setattr(ContextCache, "__init__", kept)
    for seed in range(12):
        read.clear()
        (answer,) = pipeline.generate(["a red circle"], mode="mixed", flow=FEW, max_new_tokens=60, seed=seed)
        drawn = [part for part in answer if isinstance(part, Image.Image)]
        if not drawn or len(read) < 3:
            continue
        latents, seen = read[2].runs[-2:]
        assert latents.media is not None and seen.media is not None
        assert (latents.media.name, seen.media.name) == ("latents", "patches")
        pixels = join_patches(seen.media.values, 4).astype(int)
        assert np.abs(pixels - np.asarray(drawn[0])).max() <= 1
        return
    pytest.fail("no seed draws and goes on")


def test_a_bundle_keeps_its_vit(pipeline: Pipeline, tmp_path: Any) -> None:
    pipeline.save(tmp_path)
    for packed in (False, True):
        again = load(tmp_path, packed=packed)
        settings: dict[str, Any] = {"mode": "text", "max_new_tokens": 12, "temperature": 0.0}
        assert again.generate(PROMPTS, **settings) == pipeline.generate(PROMPTS, **settings)


def test_grammars_ask_for_codes_not_a_vit(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="a grammar goes with codes, not a ViT"):
        pipeline.generate([PROMPTS[1]], mode="text", grammar=["yes", "no"])


def test_answers_about_a_picture_that_a_vit_sees_are_not_scored_by_its_codes(pipeline: Pipeline) -> None:
    plain, shown = pipeline.requests(PROMPTS[:2], pipeline.decode_config("text"))
    assert len(pipeline.engine.score([plain], [[9, 10]])[0]) == 2
    with pytest.raises(ValueError, match="cannot be scored"):
        pipeline.engine.score([shown], [[9, 10]])


def test_an_answer_in_text_is_read_as_questions_are_in_training(pipeline: Pipeline) -> None:
    """Patches alone; a drawing has the clean copies too."""
    for mode, media in (("text", ["patches"] * 2), ("image", ["latents", "patches"] * 2)):
        (request,) = pipeline.requests([PROMPTS[2]], pipeline.decode_config(mode))  # type: ignore[arg-type]
        context = read_prompt(request.prompt, shown_pictures(request, 4), pipeline.token_space)
        assert [run.media.name for run in context.runs if run.media] == media
    with pytest.raises(ValueError, match="latents of 2 pictures and pixels of 1"):
        shown_pictures(dataclasses.replace(request, pixels=request.pixels[:1]), 4)
    bare = dataclasses.replace(request, pixels=(), latents=())
    with pytest.raises(ValueError, match="they go together"):
        pipeline.engine.decode([bare])


def test_a_picture_begins_only_where_its_patches_fit_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 16 patches take more of it than its codes would."""
    small = tiny_flow_pipeline(vit=True, max_length=60)
    used: list[int] = []
    real = FlowEngine._drawn

    def drawn(engine: FlowEngine, row: Any, *given: Any) -> None:
        real(engine, row, *given)
        used.append(row.used)

    monkeypatch.setattr(FlowEngine, "_drawn", drawn)
    prompts = ["a" * length for length in range(2, 50, 2)]
    for seed in range(16):
        small.generate(prompts, mode="mixed", flow=FEW, max_new_tokens=58, seed=seed, temperature=2.0)
    assert len(used) > 10 and max(used) <= 60
